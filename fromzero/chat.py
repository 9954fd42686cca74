"""`fromzero chat`：一来一往；模型只会续写，前文就是它全部的记忆。"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fromzero.option_types import MaybePath, MaybeText, Sampling, harmless, open_generator

if TYPE_CHECKING:
    from inference.conversation import Conversation
    from inference.generator import TextGenerator
    from inference.sampling import SamplingParams

HELP = """\
/reset              forget everything said so far
/set NAME VALUE     change a sampling parameter, for example /set temperature 0.7
/params             show the sampling parameters
/exit               leave (Ctrl-D does too); Ctrl-C stops an answer"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Talk with a model; the answer appears as it is written.

    A model with a chat template (tokenizer_config.json or chat_template.jinja in its folder) is
    asked in that form. A base model only continues text: begin a sentence or a function and it
    goes on. It sees the newest turns that fit into the context, and computes only what is new in
    them; the oldest are forgotten.

    Examples:
        fromzero chat
        fromzero chat --model runs/gpt-micro --temperature 0.7 --max-new-tokens 80
        fromzero chat --model runs/qwen3 --system "Answer in one sentence."
    """

    model: MaybePath = None
    """a model or run directory; without it, the newest one in runs/"""
    adapter: MaybePath = None
    """a LoRA adapter to put on it"""
    system: MaybeText = None
    """what a model with a chat template is told before the first message"""
    sampling: Sampling = Sampling(max_new_tokens=100)
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps"""
    dtype: str = "auto"
    """the type of the weights: auto (as saved), fp32 or bf16"""
    fast: bool = True
    """on a CPU, write with kernels that are compiled once, at the first use; without a C++
    compiler, or with --no-fast, PyTorch does it"""


def run(options: Options) -> int:
    """Read lines until the end of input."""
    from inference.conversation import TemplatedConversation, conversation_for
    from inference.prefix_cache import PrefixCache

    params = chat_params(options.sampling)
    generator, directory = open_generator(
        options.model, options.device, options.dtype, options.adapter, fast=options.fast
    )
    generator.prefixes = PrefixCache()  # each turn begins with all that was said
    n_context = generator.model.config.max_seq_len
    talk = conversation_for(
        generator.tokenizer, n_context, params.max_new_tokens, system=options.system
    )
    with contextlib.suppress(ImportError):  # line editing and history, where the system has it
        importlib.import_module("readline")
    answers = isinstance(talk, TemplatedConversation)
    what = "it answers" if answers else "it continues"
    print(f"{directory}: {what} what you type; /help lists the commands")
    while True:
        try:
            line = input("> ")
        except EOFError:
            print()
            return 0
        except KeyboardInterrupt:
            print("\n(/exit or Ctrl-D leaves)")
            continue
        if line.strip() in ("/exit", "/quit"):
            return 0
        try:
            if line.startswith("/"):
                params = obey(line.split(), params, talk)
            elif line:
                answer(line, params, talk, generator)
        except ValueError as error:  # a message too long, a parameter out of range: say it, go on
            print(f"error: {error}", file=sys.stderr)


def chat_params(sampling: Sampling) -> SamplingParams:
    """One streamed answer at a time; without a seed every answer differs."""
    params = sampling.to_params()
    for name in ("num_return", "num_beams"):
        if getattr(params, name) != 1:
            raise ValueError(
                f"chat streams one answer: {name} must be 1, got {getattr(params, name)}"
            )
    return params if sampling.seed is not None else dataclasses.replace(params, seed=None)


def obey(words: list[str], params: SamplingParams, talk: Conversation) -> SamplingParams:
    """Carry out one /command and return the parameters that hold from now on."""
    if words == ["/reset"]:
        talk.reset()
        print("(forgotten)")
    elif words == ["/params"]:
        for field in dataclasses.fields(params):
            print(f"{field.name:<20}{getattr(params, field.name)}")
    elif words[0] == "/set" and len(words) == 3:
        params = changed(params, words[1].replace("-", "_"), words[2])
        talk.make_room_for(params.max_new_tokens)
        print(f"({words[1]} = {words[2]})")
    elif words == ["/help"]:
        print(HELP)
    else:
        raise ValueError(f"unknown command {' '.join(words)!r}; /help lists them")
    return params


def changed(params: SamplingParams, name: str, text: str) -> SamplingParams:
    """Set one numeric parameter from its text."""
    from foundation.checks import check_choice

    numeric = [
        field.name
        for field in dataclasses.fields(params)
        if isinstance(field.default, (int, float)) and not isinstance(field.default, bool)
    ]
    check_choice("the parameter", name, [*numeric, "seed"])
    values: dict[str, Any] = {name: number_of(name, text)}
    return dataclasses.replace(params, **values)


def number_of(name: str, text: str) -> int | float:
    """Read a number; whole ones stay integers."""
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{name} must be a number, got {text!r}") from None


def answer(line: str, params: SamplingParams, talk: Conversation, generator: TextGenerator) -> None:
    """Stream one answer; Ctrl-C stops it, and what was said is remembered."""
    prompt, n_dropped = talk.read(line)
    if n_dropped:
        turns = "turn" if n_dropped == 1 else "turns"
        print(f"(the oldest {n_dropped} {turns} no longer fit and are forgotten)")
    said = []
    try:
        for piece in generator.stream(prompt, params):
            said.append(piece)
            print(harmless(piece), end="", flush=True)
        print()
    except KeyboardInterrupt:
        print(" (stopped)")
    talk.remember(line, "".join(said))
