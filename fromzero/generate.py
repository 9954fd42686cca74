"""`fromzero generate`：给一个开头，让模型接着写。"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from foundation.checks import check_int
from fromzero.option_types import (
    MaybeInt,
    MaybePath,
    MaybeText,
    Sampling,
    harmless,
    open_generator,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from inference.constraints import Constraint
    from inference.generator import Generation, TextGenerator
    from inference.sampling import SamplingParams
    from inference.speculative import Speculation


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
        fromzero generate --prompt "def " --draft lookup
        fromzero generate --model runs/gpt-mini --draft runs/gpt-micro --prompt "The "
        fromzero generate --prompts questions.txt --json > answers.jsonl
    """

    model: MaybePath = None
    """a model or run directory; without it, the newest one in runs/"""
    adapter: MaybePath = None
    """a LoRA adapter to put on it"""
    prompt: MaybeText = None
    """the beginning of the text"""
    prompt_file: MaybePath = None
    """read the prompt from this file; without either, from standard input"""
    prompts: MaybePath = None
    """write for every line of this file at once; in a .jsonl file each line is an object with a
    prompt and, if it likes, sampling options of its own"""
    batch: int = 16
    """--prompts: how many prompts at once; more are faster and need more memory"""
    json: bool = False
    """print one line of JSON for each text: with its tokens, why it ended, its log-probabilities"""
    sampling: Sampling = Sampling()
    regex: MaybeText = None
    """write only text that matches this regular expression as a whole"""
    json_schema: MaybeText = None
    """write only JSON that this JSON schema allows: a file, or the schema itself"""
    choice: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """write one of these texts; repeat the option for each"""
    draft: MaybeText = None
    """guess several tokens and let the model correct them in one run; the text is the same, and
    it stops by itself where that is no faster: a smaller model's directory, with the same
    tokenizer, or lookup, which guesses that earlier text repeats"""
    draft_tokens: int = 8
    """--draft: guess at most this many at once"""
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
    """Write the continuation of one prompt, or of many, to stdout."""
    from fromzero.many_prompts import as_json, read_prompts
    from gpt_model.caches import CacheSettings
    from inference.prefix_cache import PrefixCache

    params = options.sampling.to_params()
    cache = CacheSettings(options.cache, options.sinks, options.window)
    rule = read_constraint(options)
    if options.prompts is None:
        asked = [(read_prompt(options), params)]
    else:
        if options.prompt is not None or options.prompt_file is not None:
            raise ValueError("give --prompts, --prompt or --prompt-file, one of them")
        asked = read_prompts(options.prompts, params)
    generator, directory = open_generator(
        options.model,
        options.device,
        options.dtype,
        options.adapter,
        fast=options.fast,
        context=options.context,
        rope_scaling=options.rope_scaling,
    )
    how: dict[str, Any] = {"cache": cache, "sliding": options.sliding, "constraint": rule}
    speculation = how["speculation"] = open_speculation(options)
    one = len(asked) == 1 and params.num_return == 1 and params.num_beams == 1
    if one and options.prompts is None and not params.logprobs and not options.json:
        pieces = generator.stream(*asked[0], **how)
        print(f"model: {directory}", file=sys.stderr)
        if not options.sliding and not cache.is_endless:
            warn_of_room(generator, *asked[0])
        stream(pieces, asked[0][0])
    else:
        prompts, each = zip(*asked, strict=True)
        if len(asked) > options.batch and cache.kind not in ("none", "sliding"):
            generator.prefixes = PrefixCache()  # the next batch may begin as this one did
        written = generator.each(prompts, each, batch=options.batch, **how)
        print(f"model: {directory}", file=sys.stderr)
        for index, texts in enumerate(written):
            for number, text in enumerate(texts, 1):
                place = "" if options.prompts is None else f"prompt {index + 1}, "
                if options.json:
                    print(as_json(index, prompts[index], text), flush=True)
                else:
                    show(text, prompts[index], f"{place}{number} of {len(texts)}", generator)
    if speculation is not None:
        print(speculation.report(), file=sys.stderr)
    return 0


def warn_of_room(generator: TextGenerator, prompt: str, params: SamplingParams) -> None:
    """A stream does not say why it ended: say before it that the context may cut it short."""
    context = generator.model.config.max_seq_len
    room = context - len(generator.tokenizer.encode(prompt, add_special=True))
    if room < params.max_new_tokens:
        print(
            f"note: the context of {context} tokens leaves room for {room} of the "
            f"{params.max_new_tokens} that may be written; --sliding goes on beyond it",
            file=sys.stderr,
        )


def stream(pieces: Iterator[str], prompt: str) -> None:
    """Show the text as it is written."""
    # a file gets exactly what was written, a terminal nothing that could disturb it
    shown = harmless if sys.stdout.isatty() else str
    sys.stdout.write(prompt)
    for piece in pieces:
        sys.stdout.write(shown(piece))
        sys.stdout.flush()
    sys.stdout.write("\n")


def open_speculation(options: Options) -> Speculation | None:
    """The guesser that --draft names; None without it."""
    from inference.guessing import DraftModel, PromptLookup
    from inference.speculative import Speculation

    most = check_int("draft_tokens", options.draft_tokens, 1)
    if options.draft is None:
        return None
    if options.draft == "lookup":
        return Speculation(PromptLookup(), most)
    path = Path(options.draft)
    if not options.draft.strip() or (options.draft.lower() == "lookup" and not path.exists()):
        raise ValueError(f"--draft must be a model's directory, or lookup, got {options.draft!r}")
    draft, _ = open_generator(path, options.device, options.dtype, fast=options.fast)
    return Speculation(DraftModel(draft.model, draft.tokenizer), most)


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
