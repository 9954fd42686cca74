"""`fromzero generate`：给一个开头，让模型接着写。"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import tyro

from fromzero.option_types import (
    MaybeInt,
    MaybePath,
    MaybeText,
    Sampling,
    harmless,
    open_generator,
)

if TYPE_CHECKING:
    from inference.constraints import Constraint
    from inference.generator import Generation, TextGenerator


@dataclass(frozen=True, kw_only=True)
class Options:
    """Continue a prompt; the text appears as it is written.

    The text goes to stdout, everything else to stderr, so that it can be piped.

    Examples:
        fromzero generate --prompt "import "
        fromzero generate --model runs/gpt-micro --prompt "def " --temperature 0.7 --top-k 40
        fromzero generate --prompt-file start.txt --num-return 3 --seed 1
        echo "class Node:" | fromzero generate --max-new-tokens 100
        fromzero generate --prompt "The " --num-beams 4 --temperature 0
        fromzero generate --prompt "The " --cache sliding --max-new-tokens 100000
        fromzero generate --prompt-file long.txt --context 2048 --rope-scaling yarn
        fromzero generate --prompt "Answer:" --choice " yes" --choice " no"
        fromzero generate --prompt "Date: " --regex "\\d{4}-\\d{2}-\\d{2}"
        fromzero generate --prompt "JSON: " --json-schema person.json
    """

    model: MaybePath = None
    """a model or run directory; without it, the newest one in runs/"""
    adapter: MaybePath = None
    """a LoRA adapter to put on it"""
    prompt: MaybeText = None
    """the beginning of the text"""
    prompt_file: MaybePath = None
    """read the prompt from this file; without either, from standard input"""
    sampling: Sampling = Sampling()
    regex: MaybeText = None
    """write only text that matches this regular expression as a whole"""
    json_schema: MaybeText = None
    """write only JSON that this JSON schema allows: a file, or the schema itself"""
    choice: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """write one of these texts; repeat the option for each"""
    sliding: bool = False
    """let the text grow past the model's context: when it is full, read its newest half again"""
    cache: str = "static"
    """where keys and values of earlier tokens are kept: static, growing, int8 (a quarter of the
    memory), sliding (the first and the newest tokens: endless text in bounded memory), or none"""
    sinks: MaybeInt = None
    """--cache sliding: how many of the first tokens are kept; without it, 4"""
    window: MaybeInt = None
    """--cache sliding: how many of the newest are kept; without it, what the context leaves"""
    context: MaybeInt = None
    """read further than the model was trained to: up to this many tokens (with --rope-scaling)"""
    rope_scaling: MaybeText = None
    """how positions are stretched to --context: none, linear, ntk, dynamic, yarn or llama3"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps"""
    dtype: str = "auto"
    """the type of the weights: auto (as saved), fp32 or bf16"""
    fast: bool = True
    """on a CPU, write with kernels that are compiled once, at the first use; without a C++
    compiler, or with --no-fast, PyTorch does it"""


def run(options: Options) -> int:
    """Write the continuation of one prompt to stdout."""
    from gpt_model.caches import CacheSettings

    params = options.sampling.to_params()
    cache = CacheSettings(options.cache, options.sinks, options.window)
    rule = read_constraint(options)
    prompt = read_prompt(options)
    generator, directory = open_generator(
        options.model,
        options.device,
        options.dtype,
        options.adapter,
        fast=options.fast,
        context=options.context,
        rope_scaling=options.rope_scaling,
    )
    if params.num_return == 1 and params.num_beams == 1 and not params.logprobs:
        pieces = generator.stream(
            prompt, params, cache=cache, sliding=options.sliding, constraint=rule
        )
        print(f"model: {directory}", file=sys.stderr)
        # a file gets exactly what was written, a terminal nothing that could disturb it
        shown = harmless if sys.stdout.isatty() else str
        sys.stdout.write(prompt)
        for piece in pieces:
            sys.stdout.write(shown(piece))
            sys.stdout.flush()
        sys.stdout.write("\n")
        return 0
    found = generator.generate(
        [prompt], params, cache=cache, sliding=options.sliding, constraint=rule
    )
    print(f"model: {directory}", file=sys.stderr)
    for number, generation in enumerate(found, 1):
        show(generation, prompt, f"{number} of {len(found)}", generator)
    return 0


def show(generation: Generation, prompt: str, number: str, generator: TextGenerator) -> None:
    """Print one finished text; with log-probabilities, one line for each token."""
    facts = [number, f"{len(generation.ids)} tokens", f"ended by {generation.finish_reason}"]
    if generation.score is not None:
        facts.append(f"score {generation.score:.4f}")
    print(f"--- {', '.join(facts)}")
    print(prompt + (harmless(generation.text) if sys.stdout.isatty() else generation.text))
    tokens = generator.tokenizer.token_bytes
    for index, logprob in enumerate(generation.logprobs or ()):
        line = f"{logprob:9.4f}  {readable(tokens(generation.ids[index]))}"
        if generation.top_logprobs:
            others = (f"{readable(tokens(i))} {x:.2f}" for i, x in generation.top_logprobs[index])
            line = f"{line:<32}{'  '.join(others)}"
        print(line)


def readable(data: bytes) -> str:
    """A token as it would be quoted in Python; half a character keeps its bytes."""
    try:
        return repr(data.decode("utf-8"))
    except UnicodeDecodeError:
        return repr(data)


def read_constraint(options: Options) -> Constraint | None:
    """The rule that the text must keep, from the one option that gives it."""
    from inference.constraints import Constraint

    given = {
        "--regex": options.regex is not None,
        "--json-schema": options.json_schema is not None,
        "--choice": bool(options.choice),
    }
    if sum(given.values()) > 1:
        names = " and ".join(name for name, is_given in given.items() if is_given)
        raise ValueError(f"give one of --regex, --json-schema and --choice, got {names}")
    if options.regex is not None:
        return Constraint.regex(options.regex)
    if options.json_schema is not None:
        return Constraint.json_schema(read_schema(options.json_schema))
    return Constraint.choices(options.choice) if options.choice else None


def read_schema(text: str) -> Any:
    """The schema itself when it begins with a brace, otherwise the file of that name."""
    from foundation.files import read_json

    if not text.lstrip().startswith("{"):
        return read_json(text)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"--json-schema is not valid JSON: {error}") from None


def read_prompt(options: Options) -> str:
    """Take the prompt from the option, the file, or standard input."""
    from foundation.files import read_text

    if options.prompt is not None and options.prompt_file is not None:
        raise ValueError("give --prompt or --prompt-file, not both")
    if options.prompt is not None:
        return options.prompt
    if options.prompt_file is not None:
        return read_text(options.prompt_file)
    if sys.stdin is None or sys.stdin.isatty():
        raise ValueError('there is no prompt; give --prompt "…" or --prompt-file FILE, or pipe one')
    data = sys.stdin.buffer.read() if hasattr(sys.stdin, "buffer") else sys.stdin.read().encode()
    try:
        return data.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"standard input is not valid UTF-8: byte 0x{data[error.start]:02x} at offset "
            f"{error.start}"
        ) from None
