r"""文本怎样变成编号，又怎样原样变回来？（being polished）"""

from __future__ import annotations

import hashlib
import json
import operator
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from foundation.checks import check_int
from foundation.files import read_text, write_text
from tokenization.bpe import SPLIT_PATTERN, byte_symbols
from tokenization.stream_decoder import StreamDecoder

__all__ = ["StreamDecoder", "Tokenizer"]

FILE_NAME = "tokenizer.json"
END_OF_TEXT = "<|endoftext|>"


class Tokenizer:
    """文本 ↔ 编号。"""

    def __init__(self, json_text: str, where: str = FILE_NAME) -> None:
        specification = json.loads(json_text)
        self.kind = "bpe" if specification["model"]["merges"] or _is_byte_level(specification) else "characters"
        self._plain = tokenizers.Tokenizer.from_str(json_text)
        self._plain.no_truncation()
        self._plain.no_padding()
        self._plain.encode_special_tokens = True
        self._with_special = tokenizers.Tokenizer.from_str(json_text)
        self._with_special.no_truncation()
        self._with_special.no_padding()
        added = specification["added_tokens"]
        self.special_tokens: dict[str, int] = {t["content"]: t["id"] for t in added if t["special"]}
        vocabulary: dict[str, int] = self._plain.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values()) + 1
        byte_of = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
        self._bytes: list[bytes | None] = [None] * self.vocab_size
        for token, token_id in vocabulary.items():
            if self.kind == "bpe" and all(c in byte_of for c in token):
                self._bytes[token_id] = bytes(byte_of[c] for c in token)
            else:
                self._bytes[token_id] = token.encode("utf-8")
        for entry in added:
            self._bytes[entry["id"]] = entry["content"].encode("utf-8")
        self._alphabet = frozenset(t for t in vocabulary if len(t) == 1)

    @classmethod
    def characters(
        cls, texts: Iterable[str], special_tokens: Sequence[str] = (END_OF_TEXT,)
    ) -> Tokenizer:
        alphabet: set[str] = set()
        for text in _checked(texts):
            alphabet.update(text)
        vocabulary = {t: i for i, t in enumerate([*special_tokens, *sorted(alphabet)])}
        library = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
        library.decoder = decoders.Fuse()
        library.add_special_tokens(list(special_tokens))
        return cls(library.to_str())

    @classmethod
    def train_bpe(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        special_tokens: Sequence[str] = (END_OF_TEXT,),
    ) -> Tokenizer:
        check_int("vocab_size", vocab_size, minimum=256 + len(special_tokens))
        library = tokenizers.Tokenizer(models.BPE())
        library.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(tokenizers.Regex(SPLIT_PATTERN), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        library.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(special_tokens),
            initial_alphabet=byte_symbols(),
            show_progress=False,
        )
        library.train_from_iterator(_checked(texts), trainer)
        return cls(library.to_str())

    @classmethod
    def from_json(cls, text: str) -> Tokenizer:
        return cls(text)

    @classmethod
    def load(cls, path: Path | str) -> Tokenizer:
        path = Path(path)
        if path.is_dir():
            path = path / FILE_NAME
        return cls(read_text(path), str(path))

    def to_json(self) -> str:
        return str(self._with_special.to_str(pretty=True))

    def save(self, path: Path | str) -> Path:
        path = Path(path)
        if path.suffix != ".json":
            path.mkdir(parents=True, exist_ok=True)
            path = path / FILE_NAME
        write_text(path, self.to_json())
        return path

    @property
    def fingerprint(self) -> str:
        canonical = json.dumps(json.loads(self.to_json()), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(canonical.encode("utf-8")).hexdigest()

    @property
    def end_id(self) -> int | None:
        for name in (END_OF_TEXT, "</s>"):
            if name in self.special_tokens:
                return self.special_tokens[name]
        return None

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        return self.encode_batch([text], allow_special=allow_special)[0]

    def encode_batch(
        self, texts: Sequence[str], *, allow_special: bool = False
    ) -> list[list[int]]:
        for text in texts:
            _check_surrogates(text)
            if self.kind == "characters" and not allow_special:
                self._check_alphabet(text)
        library = self._with_special if allow_special else self._plain
        return [e.ids for e in library.encode_batch_fast(list(texts), add_special_tokens=False)]

    def _check_alphabet(self, text: str) -> None:
        unseen = set(text) - self._alphabet
        if unseen:
            offset = next(i for i, c in enumerate(text) if c in unseen)
            raise ValueError(
                f"character {text[offset]!r} (U+{ord(text[offset]):04X}) at offset {offset} is not in "
                f"this character tokenizer's vocabulary of {self.vocab_size}"
            )

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        skipped = set(self.special_tokens.values()) if skip_special else set()
        numbers = [operator.index(i) for i in ids]
        return b"".join(self.token_bytes(i) for i in numbers if i not in skipped).decode(
            "utf-8", errors="replace"
        )

    def token_bytes(self, token_id: int) -> bytes:
        value = self._bytes[token_id] if 0 <= token_id < self.vocab_size else None
        if value is None:
            raise ValueError(f"token id {token_id} is not in [0, {self.vocab_size})")
        return value

    def stream(self, *, skip_special: bool = False) -> StreamDecoder:
        return StreamDecoder(
            self.token_bytes, self.special_tokens.values() if skip_special else ()
        )


def _is_byte_level(specification: dict[str, Any]) -> bool:
    return (specification.get("decoder") or {}).get("type") == "ByteLevel"


def _check_surrogates(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise ValueError(
            f"lone surrogate U+{code:04X} at offset {error.start}: not a character"
        ) from None


def _checked(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        _check_surrogates(text)
        yield text
