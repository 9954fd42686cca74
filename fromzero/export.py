"""`fromzero export`：把模型写成别的程序读得懂的格式。"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from foundation.checks import check_choice
from fromzero.option_types import MaybeText, open_model

if TYPE_CHECKING:
    from gpt_model.gguf_export import GGUFSummary
    from gpt_model.model import GPT
    from tokenization.tokenizer import Tokenizer

FORMATS = ("gguf",)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Write a model as a file that other programs read.

    gguf is one file for llama.cpp and Ollama, the tokenizer included.

    Examples:
        fromzero export runs/gpt-micro --to gpt-micro.gguf
        fromzero export runs/gpt-micro --to small.gguf --type q8_0 --pretokenizer llama-bpe
        fromzero export runs/gpt-micro --to ids-only.gguf --without-tokenizer
    """

    model: tyro.conf.Positional[Path]
    """a model or run directory"""
    to: Path
    """the file to write"""
    format: str = "gguf"
    """gguf"""
    type: str = "f16"
    """gguf: how the matrices are stored: f32, f16 or q8_0"""
    pretokenizer: MaybeText = None
    """gguf: split text by this rule of llama.cpp's; needed where it does not know the
    tokenizer's own, and some token ids then differ from training"""
    without_tokenizer: bool = False
    """gguf: leave the tokenizer out; the program is then fed with token ids"""


def run(options: Options) -> int:
    """Write the file and say what is in it."""
    check_choice("format", options.format, FORMATS)
    model, tokenizer = load(options)
    from gpt_model.gguf_export import export_gguf

    summary = export_gguf(
        model,
        options.to,
        tokenizer=tokenizer,
        weight_type=options.type,
        pretokenizer=options.pretokenizer,
        name=options.model.resolve().name,
    )
    report(summary, tokenizer, options.pretokenizer)
    return 0


def load(options: Options) -> tuple[GPT, Tokenizer | None]:
    """The model and its tokenizer, unless it is to be left out."""
    if not options.without_tokenizer:
        model, tokenizer, _ = open_model(options.model)
        return model, tokenizer
    if options.pretokenizer is not None:
        raise ValueError("--pretokenizer is of no use with --without-tokenizer; give one of them")
    from gpt_model.model import GPT
    from gpt_model.model_directory import find_model_directory

    return GPT.load(find_model_directory(options.model)), None


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
        notes.append("llama.cpp drops characters that the vocabulary lacks, without a word")
    elif pretokenizer is not None:
        notes.append(f"text is split as {pretokenizer!r} does; some token ids differ from training")
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    size = f"{summary.n_bytes / 2**20:.1f} MiB"
    print(f"{summary.path}: {summary.architecture}, {summary.n_tensors} tensors, {size}")
