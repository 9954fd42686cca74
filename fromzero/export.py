"""`fromzero export`：把模型写成别家程序读得进的样子。"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from foundation.checks import check_choice
from fromzero.option_types import MaybePath, MaybeText, open_model

if TYPE_CHECKING:
    from gpt_model.gguf_export import GGUFSummary
    from gpt_model.model import GPT
    from tokenization.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Options:
    """Write a model in the layout of another program.

    gguf: one file for llama.cpp and Ollama, the tokenizer included.

    Examples:
        fromzero export runs/gpt-micro --to gpt-micro.gguf --format gguf --pretokenizer llama-bpe
        fromzero export runs/qwen3 --to qwen3.gguf --format gguf --type q8_0
        fromzero export runs/gpt-micro --to ids-only.gguf --format gguf --without-tokenizer
    """

    directory: tyro.conf.Positional[Path]
    """a model directory or a run"""
    to: Path
    """what to write"""
    format: str = "gguf"
    """which layout: gguf"""
    adapter: MaybePath = None
    """merge this LoRA adapter into the model first"""
    type: str = "f16"
    """gguf: how the matrices are stored: f32, f16 or q8_0"""
    pretokenizer: MaybeText = None
    """gguf: split text by this rule of llama.cpp's, where it does not know the tokenizer's own;
    some token ids then differ from training"""
    without_tokenizer: bool = False
    """gguf: leave the tokenizer out; the program is then fed with token ids"""


def run(options: Options) -> int:
    """Hand over to the writer of the format."""
    FORMATS[check_choice("format", options.format, FORMATS)](options)
    return 0


def to_gguf(options: Options) -> None:
    """One file for llama.cpp and Ollama."""
    if options.without_tokenizer and options.pretokenizer is not None:
        raise ValueError("--pretokenizer is of no use with --without-tokenizer; give one of them")
    from gpt_model.gguf_export import export_gguf

    model, tokenizer = load(options)
    summary = export_gguf(
        model,
        options.to,
        tokenizer=tokenizer,
        weight_type=options.type,
        pretokenizer=options.pretokenizer,
        name=options.directory.resolve().name,
    )
    report(summary, tokenizer, options.pretokenizer)


def load(options: Options) -> tuple[GPT, Tokenizer | None]:
    """The model and its tokenizer; a directory that has none will do if none is wanted."""
    if options.without_tokenizer and options.adapter is None:
        from gpt_model.model import GPT
        from gpt_model.model_directory import find_model_directory

        return GPT.load(find_model_directory(options.directory)), None
    model, tokenizer, _ = open_model(options.directory, "cpu", "auto", options.adapter)
    return model, None if options.without_tokenizer else tokenizer


def report(summary: GGUFSummary, tokenizer: Tokenizer | None, pretokenizer: str | None) -> None:
    """What was written, and on stderr what is not quite as asked or as trained."""
    notes = []
    if summary.fallbacks:
        names = ", ".join(summary.fallbacks[:3]) + (", …" if summary.fallbacks[3:] else "")
        notes.append(
            f"{len(summary.fallbacks)} tensors have rows that are no multiple of 32 and "
            f"are stored as f16: {names}"
        )
    if tokenizer is None:
        notes.append("no tokenizer: llama.cpp takes and gives token ids only")
    elif tokenizer.kind == "characters":
        notes.append(
            "llama.cpp drops or misreads characters that the vocabulary lacks, without a word"
        )
    elif pretokenizer is not None:
        notes.append(f"text is split as {pretokenizer!r} does; some token ids differ from training")
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    size = f"{summary.n_bytes / 2**20:.1f} MiB"
    print(f"{summary.path}: {summary.architecture}, {summary.n_tensors} tensors, {size}")


# One writer per format; each says what its format cannot hold.
FORMATS: dict[str, Callable[[Options], None]] = {"gguf": to_gguf}
