"""`fromzero data prepare`：文件、文件夹、数据集 → 一个训练可以直接用的数据目录。"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from fromzero.option_types import MaybeFloat, MaybeInt, MaybeText, given_tokenizer, harmless


@dataclass(frozen=True, kw_only=True)
class Options:
    """Tokenize a corpus of any size into a directory that `fromzero train --data` takes.

    Sources are txt, md, py, jsonl (each also .gz) and parquet files, folders, patterns, the names
    python-docs and python-code, and hf:NAME:CONFIG:SPLIT for a Hugging Face dataset (hf:NAME@COMMIT
    for that version of it; the one that was read is written down). Memory does not grow with their
    size; interrupted or killed, the same command goes on where it was.

    Examples:
        fromzero data prepare my.txt --out data/mine
        fromzero data prepare "books/*.txt" notes/ --out data/books --vocab-size 8192
        fromzero data prepare web.jsonl.gz --out data/web --dedup --min-chars 200
        fromzero data prepare hf:roneneldan/TinyStories --out data/stories
    """

    sources: tyro.conf.Positional[tuple[str, ...]]
    """files, folders, patterns, names, datasets; read one after the other"""
    out: Path
    """the directory to write; an older one is replaced only when the new one is whole"""

    # how it is read and tokenized
    tokenizer: str = "bpe"
    """bpe or characters (learned from the data), bpe:llama-bpe, bpe:qwen2 or another split that
    llama.cpp knows (to export to it later), or the path of a tokenizer or model"""
    vocab_size: int = 2048
    """how many tokens bpe learns"""
    validation: MaybeText = None
    """another corpus to validate on; without it a part of the sources is held out"""
    val_fraction: float = 0.1
    """the share of the documents held out for validation"""
    errors: str = "strict"
    """what to do with bytes that are not UTF-8: strict or replace"""
    text_key: str = "text"
    """which key of a jsonl line or column of a parquet file holds the text"""
    workers: MaybeInt = None
    """how many processes tokenize; without it as many as cores; the result is the same"""

    # what is left out
    dedup: bool = False
    """drop documents that equal an earlier one but for white space"""
    min_chars: MaybeInt = None
    """drop documents shorter than this"""
    max_chars: MaybeInt = None
    """drop documents longer than this"""
    max_symbol_share: MaybeFloat = None
    """drop documents with a larger share of characters that are no letters, digits or spaces"""
    max_unprintable_share: MaybeFloat = None
    """drop documents with a larger share of control characters and U+FFFD"""
    max_repeated_lines: MaybeFloat = None
    """drop documents with a larger share of lines that repeat an earlier one"""


def run(options: Options) -> int:
    """Sources → data directory, and a report."""
    from training.cleaning import Cleaning
    from training.corpus import corpus_size
    from training.mixture import parse_weights
    from training.prepare import prepare_data

    for source in options.sources:
        if parse_weights(source) is not None:
            raise ValueError(
                f"weights belong to `fromzero train --data`, not here, got {source!r}; prepare "
                "each source for itself, then train with --data DIR@WEIGHT+DIR@WEIGHT"
            )
    validation = [] if options.validation is None else [options.validation]
    cleaning = Cleaning(
        dedup=options.dedup,
        min_chars=options.min_chars,
        max_chars=options.max_chars,
        max_symbol_share=options.max_symbol_share,
        max_unprintable_share=options.max_unprintable_share,
        max_repeated_lines=options.max_repeated_lines,
    )
    start = time.monotonic()
    n_read = 0

    def watch(doing: str, n_bytes: int) -> None:
        nonlocal n_read
        n_read += n_bytes if doing == "tokenizing" else 0
        show(doing, n_bytes)

    size = corpus_size([*options.sources, *validation])
    try:
        with progress_bar(size) as show:
            shards = prepare_data(
                options.sources,
                given_tokenizer(options.tokenizer) or options.tokenizer,
                options.out,
                vocab_size=options.vocab_size,
                validation=options.validation,
                val_fraction=options.val_fraction,
                errors=options.errors,
                text_key=options.text_key,
                workers=options.workers,
                cleaning=cleaning,
                watch=watch,
            )
    except KeyboardInterrupt:
        print("to go on: the same command again; what is finished is kept", file=sys.stderr)
        raise
    for shard in shards:
        shard.close()
    print(report(options.out, time.monotonic() - start, n_read))
    return 0


@contextmanager
def progress_bar(size: int) -> Iterator[Callable[[str, int], None]]:
    """A bar for each kind of work, on stderr and only on a terminal; size 0 is unknown."""
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with progress.Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        tasks: dict[str, Any] = {}

        def show(doing: str, n_bytes: int) -> None:
            if doing not in tasks:
                tasks[doing] = bar.add_task(doing, total=size or None)
            bar.advance(tasks[doing], n_bytes)

        yield show


def report(directory: Path, seconds: float, n_read: int) -> str:
    """What is in a data directory, what was dropped, and how fast it was made."""
    from foundation.files import read_manifest
    from training.cleaning import CleaningReport

    manifest = read_manifest(directory)
    splits = manifest["splits"]
    train, val = splits["train"], splits["val"]
    n_tokens, n_bytes = (train[key] + val[key] for key in ("n_tokens", "n_bytes"))
    speed = f"{n_bytes / 1e6 / seconds:.1f} MB/s" if n_read else "nothing has changed"
    how = {"tail": "cut at the end", "given": "given", "documents": "by document"}
    rows = {
        "data": f"{directory}, from {manifest['corpus']}",
        "documents": f"{train['n_documents']:,} to learn from, {val['n_documents']:,} to validate "
        f"on ({how[manifest['split_by']]})",
        "tokens": f"{train['n_tokens']:,} to learn from, {val['n_tokens']:,} to validate on; "
        f"{n_bytes / n_tokens:.2f} bytes per token, vocabulary {manifest['vocab_size']:,}",
        "time": f"{seconds:.1f} s, {speed}",
    }
    cleaned = CleaningReport(**manifest["cleaned"])
    n_dropped = sum(cleaned.dropped.values())
    if manifest["cleaning"]:
        rows["dropped"] = f"{n_dropped:,} documents, {sum(cleaned.dropped_bytes.values()):,} bytes"
    lines = [f"{name:<11}{value}" for name, value in rows.items()]
    versions = manifest.get("revisions", {})  # an older version did not write them
    lines += [f"{'revision':<11}{spec}: commit {commit}" for spec, commit in versions.items()]
    lines += [f"  {harmless(line)}" for line in cleaned.lines()]
    return "\n".join([*lines, f"\ngo on: fromzero train --data {directory}"])
