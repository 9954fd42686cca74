"""`fromzero tokenizer train`：从自己的文本学一个分词器，并量一量它省了多少。"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from fromzero.option_types import MaybePath, free_directory

if TYPE_CHECKING:
    from tokenization.tokenizer import Tokenizer
    from training.documents import Document

# Every 20th document, up to a million characters of them, is not learned from but measured on.
EVERY = 20
MEASURED = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Options:
    """Learn a byte-level BPE tokenizer from text and report how well it compresses.

    The result is a tokenizer.json, for `fromzero train --tokenizer DIR` and for Hugging Face's
    libraries. Files are read one document at a time, so that they may be larger than memory.

    Examples:
        fromzero tokenizer train my.txt --vocab-size 8192 --out runs/my-tokenizer
        fromzero tokenizer train books/ chats.jsonl --vocab-size 32000
        fromzero tokenizer train my.txt --special "<|im_start|>" "<|im_end|>"
        fromzero tokenizer train my.txt --split llama-bpe
        fromzero tokenizer train my.txt --compare path/to/gpt2
    """

    files: tyro.conf.Positional[tuple[str, ...]]
    """text, jsonl, folders, patterns, or python-docs and python-code"""
    vocab_size: int = 8192
    """how many tokens; small ones learn faster, large ones make shorter sequences"""
    out: MaybePath = None
    """the folder for tokenizer.json; without it a new one in runs/"""
    overwrite: bool = False
    """replace the tokenizer that is already in --out"""
    split: str = "own"
    """how text is cut before merging: own (short sequences on code, linear time on any text), or
    one that llama.cpp knows too, so that models can be exported to it: llama-bpe, qwen2 …"""
    special: tuple[str, ...] = ()
    """names of further special tokens; <|endoftext|> is always there"""
    compare: MaybePath = None
    """another tokenizer (a folder or a tokenizer.json) to measure beside it, GPT-2's for example"""
    errors: str = "strict"
    """strict, or replace: what to do with bytes that are not UTF-8"""
    text_key: str = "text"
    """jsonl: the key that holds the text"""


def run(options: Options) -> int:
    """Text → tokenizer.json, and a table."""
    from foundation.checks import check_choice
    from tokenization.input_checks import END_OF_TEXT, check_special_tokens, check_vocab_size
    from tokenization.split_rules import SPLITS
    from tokenization.tokenizer import Tokenizer
    from training.corpus import load_corpus

    # ① everything that can be wrong is found before anything takes long
    if not options.files:
        raise ValueError("FILES must be given: what should it learn from?")
    names = [END_OF_TEXT, *(name for name in options.special if name != END_OF_TEXT)]
    check_choice("split", options.split, SPLITS)
    check_vocab_size(options.vocab_size, len(check_special_tokens(names)))
    out = free_target(options.out, options.overwrite)
    other = None if options.compare is None else Tokenizer.load(options.compare)
    parts = [
        load_corpus(part, errors=options.errors, text_key=options.text_key)
        for part in options.files
    ]
    # ② learn; a share of the documents is only measured on
    kept = HeldOut(document for part in parts for document in part)
    start = time.perf_counter()
    tokenizer = Tokenizer.train_bpe(kept, options.vocab_size, names, options.split)
    seconds = time.perf_counter() - start
    path = tokenizer.save(out)
    print(f"{path}: {tokenizer.vocab_size} tokens from {kept.n_bytes / 1e6:.1f} MB", end=" ")
    print(f"in {seconds:.1f} s")
    if tokenizer.vocab_size < options.vocab_size:
        print(f"(fewer than {options.vocab_size}: no two tokens follow each other often enough)")
    # ③ measure
    print()
    print(table(measured_texts(kept), {"this one": tokenizer, **named(options.compare, other)}))
    print(f"\nnext: fromzero train --data {options.files[0]} --tokenizer {out}")
    return 0


def free_target(out: Path | None, overwrite: bool) -> Path:
    """The folder to write to; a tokenizer that is there is replaced only when asked for."""
    from tokenization.tokenizer import FILE_NAME

    if out is None:
        return free_directory(Path("runs"), "tokenizer")
    if out.is_file() or out.suffix == ".json":
        raise ValueError(f"--out must be a folder, got {out}")
    if (out / "config.json").exists() or (out / "manifest.json").exists():
        raise ValueError(f"{out} belongs to a model or a data set; choose another folder")
    if (out / FILE_NAME).exists() and not overwrite:
        raise ValueError(f"{out / FILE_NAME} exists; choose another --out, or pass --overwrite")
    out.mkdir(parents=True, exist_ok=True)  # a place that cannot be written to fails now
    return out


class HeldOut:
    """The texts to learn from; some pass by and are kept to measure on instead."""

    def __init__(self, documents: Iterable[Document]) -> None:
        self.documents = documents
        self.n_bytes = 0
        self.texts: list[str] = []
        self.first: list[str] = []  # for when there are too few documents to keep any out

    def __iter__(self) -> Iterator[str]:
        size = first_size = 0
        for number, document in enumerate(self.documents, 1):
            text = document.text
            if number % EVERY == 0 and size < MEASURED:
                self.texts.append(text[: MEASURED - size])
                size += len(self.texts[-1])
                continue
            if first_size < MEASURED:
                self.first.append(text[: MEASURED - first_size])
                first_size += len(self.first[-1])
            self.n_bytes += len(text.encode())
            yield text


def measured_texts(kept: HeldOut) -> dict[str, list[str]]:
    """What to measure on: the user's text, Chinese, code."""
    own = {"your text, held out": kept.texts} if kept.texts else {"your text, learned": kept.first}
    chinese, code = samples()
    return {**own, "Chinese": chinese, "code": code}


def samples() -> tuple[list[str], list[str]]:
    """Chinese and code that are always there: this project's own pages, apart from each other."""
    import tokenization

    chinese: list[str] = []
    code: list[str] = []
    for path in sorted(Path(tokenization.__file__).parents[1].glob("t*/*.py")):
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            is_chinese = any("\u4e00" <= character <= "\u9fff" for character in line)
            (chinese if is_chinese else code).append(line)
    return ["".join(chinese)], ["".join(code)]


def named(path: Path | None, other: Tokenizer | None) -> dict[str, Tokenizer]:
    """The tokenizer to compare with, under its folder's name."""
    if path is None or other is None:
        return {}
    return {(path.parent if path.suffix == ".json" else path).resolve().name: other}


def table(texts: dict[str, list[str]], tokenizers: dict[str, Tokenizer]) -> str:
    """Bytes per token: the more, the shorter the sequences. One row for each text."""
    header = ["bytes per token", "bytes", "characters", *tokenizers]
    rows = [header]
    for name, parts in texts.items():
        n_bytes = sum(len(part.encode()) for part in parts)
        counts = [n_bytes, sum(map(len, parts))]
        counts += [sum(map(len, one.encode_batch(parts))) for one in tokenizers.values()]
        rows.append([name, *(f"{n_bytes / max(1, count):.2f}" for count in counts)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells]))
    if len(tokenizers) == 1:
        lines.append("(--compare DIR adds another tokenizer, GPT-2's for example)")
    return "\n".join(lines)
