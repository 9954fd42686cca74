"""`fromzero generate`：给一个开头，让模型接着写。"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fromzero.option_types import MaybePath, MaybeText, Sampling, harmless, open_generator

if TYPE_CHECKING:
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
    sliding: bool = False
    """let the text grow past the model's context by forgetting its beginning"""
    cache: bool = True
    """keep keys and values of earlier tokens; without it every step computes all of them again"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps"""
    dtype: str = "auto"
    """the type of the weights: auto (as saved), fp32 or bf16"""


def run(options: Options) -> int:
    """Write the continuation of one prompt to stdout."""
    params = options.sampling.to_params()
    prompt = read_prompt(options)
    generator, directory = open_generator(
        options.model, options.device, options.dtype, options.adapter
    )
    if params.num_return == 1 and params.num_beams == 1 and not params.logprobs:
        pieces = generator.stream(prompt, params, use_cache=options.cache, sliding=options.sliding)
        print(f"model: {directory}", file=sys.stderr)
        # a file gets exactly what was written, a terminal nothing that could disturb it
        shown = harmless if sys.stdout.isatty() else str
        sys.stdout.write(prompt)
        for piece in pieces:
            sys.stdout.write(shown(piece))
            sys.stdout.flush()
        sys.stdout.write("\n")
        return 0
    found = generator.generate([prompt], params, use_cache=options.cache, sliding=options.sliding)
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
