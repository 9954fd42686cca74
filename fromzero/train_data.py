"""`fromzero train --data`：文本、数据目录、或几份按比例混着 → 训练用的批次。"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from fromzero.train import Options
    from gpt_model.config import GPTConfig
    from tokenization.tokenizer import Tokenizer
    from training.batch import Batch
    from training.dataset import TokenBatches
    from training.mixture import MixedBatches
    from training.token_shard import TokenShard

__all__ = ["Source", "TrainingData", "is_data_directory", "open_prepared", "prepare"]


class Source(NamedTuple):
    """One corpus: what it is called, its weight in the mixture, its two splits."""

    name: str
    weight: float
    train: TokenShard
    val: TokenShard


@dataclass(frozen=True)
class TrainingData:
    """One corpus, or several that are mixed by weight; the same questions, the same answers."""

    sources: list[Source]
    tokenizer: Tokenizer

    @property
    def n_tokens(self) -> int:
        """How much there is to learn from before a source is read a second time."""
        total = sum(source.weight for source in self.sources)
        return int(min(source.train.n_tokens * total / source.weight for source in self.sources))

    @property
    def n_val_tokens(self) -> int:
        """How much there is to validate on, all sources together."""
        return sum(source.val.n_tokens for source in self.sources)

    @property
    def bytes_per_token(self) -> float | None:
        """Of the text to learn from, by weight."""
        return self._bytes_per_token([source.train for source in self.sources], weighted=True)

    @property
    def val_bytes_per_token(self) -> float | None:
        """Of the text to validate on, as much of each source as there is."""
        return self._bytes_per_token([source.val for source in self.sources], weighted=False)

    def _bytes_per_token(self, shards: list[TokenShard], *, weighted: bool) -> float | None:
        n_bytes = n_tokens = 0.0
        for source, shard in zip(self.sources, shards, strict=True):
            if shard.bytes_per_token is None:
                return None
            n = source.weight if weighted else shard.n_tokens
            n_tokens += n
            n_bytes += n * shard.bytes_per_token
        return n_bytes / n_tokens

    def batches(
        self, batch_size: int, block_size: int, *, seed: int, with_document_ids: bool
    ) -> TokenBatches | MixedBatches:
        """What the trainer reads: batch number → batch."""
        from training.dataset import TokenBatches
        from training.mixture import MixedBatches

        each = [
            TokenBatches(
                source.train, batch_size, block_size, seed=seed, with_document_ids=with_document_ids
            )
            for source in self.sources
        ]
        if len(each) == 1:
            return each[0]
        return MixedBatches(each, [source.weight for source in self.sources])

    def val_batches(
        self, batch_size: int, block_size: int, *, with_document_ids: bool
    ) -> Iterator[Batch]:
        """Every validation split once, one source after the other."""
        from training.dataset import sequential_batches

        return chain.from_iterable(
            sequential_batches(
                source.val, batch_size, block_size, with_document_ids=with_document_ids
            )
            for source in self.sources
        )


def prepare(
    options: Options, config: GPTConfig, tokenizer: Tokenizer | None, *, quiet: bool = False
) -> TrainingData:
    """Tokenize the corpora, or find the tokens of last time, or open a prepared directory."""
    from rich.console import Console

    from tokenization.tokenizer import Tokenizer
    from training.mixture import parse_weights

    weights = parse_weights(options.data) or [(options.data, 1.0)]
    if len(weights) > 1 and options.validation is not None:
        raise ValueError(
            "--validation is for one corpus; each source of a mixture holds out a part of itself"
        )
    prepared = [name for name, _ in weights if is_data_directory(name)]
    if not prepared and any(is_data_directory(part) for part in options.data.split("+")):
        raise ValueError(
            f"prepared directories are mixed by weight, got {options.data!r}; "
            "say how much of each: DIR@0.7+DIR@0.3"
        )
    console = Console(stderr=True, quiet=quiet)
    with console.status(f"reading {options.data}, learning the tokenizer") as status:

        def progress(n_bytes: int) -> None:
            status.update(f"tokenized {n_bytes / 1e6:.1f} MB")

        # A mixture has one vocabulary: a prepared directory's, the given one, or one learned from
        # all the texts together.
        if prepared:
            tokenizer = agreed_tokenizer(options, prepared, tokenizer)
        elif len(weights) > 1 and tokenizer is None:
            tokenizer = learned_tokenizer(options, config, [name for name, _ in weights])
        sources: list[Source] = []
        for name, weight in weights:
            if name in prepared:
                if options.validation is not None:
                    raise ValueError(
                        f"{name} holds its own validation split; leave --validation out"
                    )
                train, val = open_prepared(name)
            else:
                directory = cache_directory(options, options.data, config.vocab_size)
                if len(weights) > 1:  # beside the tokenizer they have in common
                    directory /= str(len(sources) + 1)
                train, val = prepare_text(options, name, directory, tokenizer, config, progress)
                if len(weights) == 1:
                    tokenizer = Tokenizer.load(directory)
            sources.append(Source(name, weight, train, val))
    assert tokenizer is not None
    return TrainingData(sources, tokenizer)


def is_data_directory(name: str) -> bool:
    """Is there a directory of token shards, as `fromzero data prepare` writes it?"""
    from foundation.files import MANIFEST, read_json
    from training.token_shard import KIND

    path = Path(name).expanduser()
    if not (path / MANIFEST).is_file():
        return False
    manifest = read_json(path / MANIFEST)
    return isinstance(manifest, dict) and manifest.get("format") == f"llm-from-zero/{KIND}"


def agreed_tokenizer(
    options: Options, directories: list[str], given: Tokenizer | None
) -> Tokenizer:
    """The one tokenizer of all prepared directories; another one, given or found, is refused."""
    from tokenization.tokenizer import Tokenizer

    first = Tokenizer.load(Path(directories[0]).expanduser())
    others = [(name, Tokenizer.load(Path(name).expanduser())) for name in directories[1:]]
    if given is not None:
        others.append((options.tokenizer, given))
    for name, other in others:
        if other.fingerprint != first.fingerprint:
            raise ValueError(
                f"{directories[0]} and {name} have different tokenizers ({first.vocab_size} and "
                f"{other.vocab_size} tokens); prepare both with the same one: --tokenizer PATH"
            )
    wanted = options.model.vocab_size
    if wanted is not None and wanted < first.vocab_size:
        raise ValueError(
            f"vocab_size must be >= {first.vocab_size}, the size of {directories[0]}; got {wanted}"
        )
    return first


def open_prepared(name: str) -> tuple[TokenShard, TokenShard]:
    """Both splits of a prepared directory, checked against its manifest."""
    from foundation.files import verify_manifest
    from training.token_shard import KIND, TokenShard

    path = Path(name).expanduser()
    verify_manifest(path, kind=KIND)
    train, val = (TokenShard.open(path, split, verify=False) for split in ("train", "val"))
    return train, val


def prepare_text(
    options: Options,
    data: str,
    directory: Path,
    tokenizer: Tokenizer | None,
    config: GPTConfig,
    progress: Any,
) -> tuple[TokenShard, TokenShard]:
    """Tokenize one corpus into --data-dir, or find it there."""
    from training.prepare import prepare_data

    return prepare_data(
        data,
        options.tokenizer if tokenizer is None else tokenizer,
        directory,
        vocab_size=config.vocab_size,
        validation=options.validation,
        val_fraction=options.val_fraction,
        errors=options.errors,
        text_key=options.text_key,
        progress=progress,
        workers=None,
    )


def learned_tokenizer(options: Options, config: GPTConfig, names: list[str]) -> Tokenizer:
    """One tokenizer from all the sources of a mixture; kept for the next run."""
    from training.cleaning import Cleaning
    from training.corpus import corpus_fingerprint
    from training.prepare import train_tokenizer
    from training.unfinished_work import trained_once

    how = {"errors": options.errors, "text_key": options.text_key}
    folder = cache_directory(options, options.data, config.vocab_size)
    folder.mkdir(parents=True, exist_ok=True)
    facts = [options.tokenizer, config.vocab_size, how, *map(corpus_fingerprint, names)]
    return trained_once(
        folder,
        hashlib.sha256(json.dumps(facts).encode()).hexdigest(),
        lambda: train_tokenizer(options.tokenizer, names, config.vocab_size, Cleaning(), **how),
    )


def cache_directory(options: Options, data: str, vocab_size: int) -> Path:
    """Where the tokens of a corpus are kept for the next run."""
    facts = [data, options.validation, options.tokenizer, vocab_size]
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:8]
    name = re.sub(r"[^\w+.-]+", "-", data).strip("-.")[-40:]
    return options.data_dir / f"{name}-{digest}"
