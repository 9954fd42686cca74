r"""文本怎样变成编号，又怎样原样变回来？模型只认编号，所以这一步不能丢一个字节。

    $\mathrm{decode}(\mathrm{encode}(x)) = x$，对任何文本 x 成立

    文本  "明月 moon"
      │  characters：一个字符一个编号；词表小，序列长，没见过的字符无法编码
      │      明 月 ␣ m o o n                     → 7 个编号
      │  bpe：先切片，再从字节开始合并；没有无法编码的文本
      │      明月 │ ␣moon                        → 至少 2 个编号，看学到了什么
      ▼
    编号  (T,)  ──模型──▶  编号  ──decode──▶  文本

`bpe.py` 把算法全写了出来；这里把同样的工作交给 `tokenizers` 库（Rust 写成，多线程），
两边的合并与编号逐项相同，由测试保证。另外管三件课上容易忽略、用起来要命的事：

* 特殊词元（special token）是给模型看的标点，例如「文章到此为止」。用户在聊天框里打出
  同样的字，只能算普通文字，否则任何人都能假装文章结束、假装换了说话的人。
* 流式输出时半个汉字不能显示成 �：见 `stream_decoder.py`。
* 编号变了而数据没有重做，模型读到的就是乱码：用 `fingerprint` 认出同一个分词器。

文献：Sennrich 等 2016（BPE）；Radford 等 2019（字节级 BPE）。
改哪里：切片规则 → `bpe.py` 的 SPLIT_PATTERN；文件检查 → `tokenizer_file.py`；
        认哪些名字作「文章结束」→ END_TOKENS。
"""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from foundation.demonstration import run_demo
from foundation.files import read_text, write_text
from tokenization.input_checks import (
    END_OF_TEXT,
    check_special_tokens,
    check_text,
    check_vocab_size,
    checked_texts,
)
from tokenization.stream_decoder import StreamDecoder
from tokenization.text_pieces import SPLIT_PATTERN, byte_symbols
from tokenization.tokenizer_file import (
    fingerprint_of,
    kind_of,
    parse_specification,
    special_ids,
    token_table,
)

__all__ = ["END_OF_TEXT", "StreamDecoder", "Tokenizer"]

FILE_NAME = "tokenizer.json"

# 依次找：我们自己与 GPT-2、Qwen 的基座；Llama 3；Llama 2 与 Mistral
END_TOKENS = (END_OF_TEXT, "<|end_of_text|>", "</s>")


class Tokenizer:
    """文本 ↔ 编号；从 `characters`、`train_bpe`、`load` 或 `from_json` 得到。

    种类：kind 为 "characters" 或 "bpe"
    大小：编号都在 [0, vocab_size) 内；别人的词表可能有空缺，所以这是最大编号加一
    """

    def __init__(self, json_text: str, where: str = FILE_NAME) -> None:
        specification = parse_specification(json_text, where)
        self.kind = kind_of(specification)
        self.special_tokens: dict[str, int] = special_ids(specification)
        self.fingerprint = fingerprint_of(specification)
        self._bytes = token_table(specification)
        self.vocab_size = max(self._bytes) + 1
        # 两个库对象各管一种情形，造好后再不改动：同一个对象来回切换，多线程下会串
        self._json_text = json_text
        self._plain = _build(json_text, where)
        self._plain.encode_special_tokens = True  # 库的意思：把特殊词元当普通文字编码

    @cached_property
    def _with_special(self) -> Any:
        return _build(self._json_text, FILE_NAME)

    # ── 得到一个分词器 ───────────────────────────────────────────────────────

    @classmethod
    def characters(
        cls, texts: Iterable[str], special_tokens: Sequence[str] = (END_OF_TEXT,)
    ) -> Tokenizer:
        """每个出现过的字符一个编号：特殊词元在前，字符按码位排在后。

        它就是没有合并的 BPE，所以用同一种文件、同一个库
        """
        names = check_special_tokens(special_tokens)
        alphabet = sorted({character for text in checked_texts(texts) for character in text})
        if not alphabet:
            raise ValueError("texts hold no character: there is nothing to build a vocabulary from")
        vocabulary = {token: index for index, token in enumerate([*names, *alphabet])}
        library = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
        library.decoder = decoders.Fuse()
        library.add_special_tokens(names)
        return cls(library.to_str())

    @classmethod
    def train_bpe(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        special_tokens: Sequence[str] = (END_OF_TEXT,),
    ) -> Tokenizer:
        """从语料学出至多 vocab_size 个词元；语料太小、再无可合并的对时会少于此数。

        结果只取决于语料与参数，与线程数、运行次数无关
        """
        names = check_special_tokens(special_tokens)
        check_vocab_size(vocab_size, len(names))
        library = tokenizers.Tokenizer(models.BPE())
        # ① 先按规则切片，再把每片的字节换成可见符号
        library.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(tokenizers.Regex(SPLIT_PATTERN), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        library.decoder = decoders.ByteLevel()
        # ② 256 个字节无条件入表：没见过的字也总能编码
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=names,
            initial_alphabet=byte_symbols(),
            show_progress=False,
        )
        library.train_from_iterator(checked_texts(texts), trainer)
        return cls(library.to_str(), "the trained tokenizer")

    @classmethod
    def from_json(cls, text: str) -> Tokenizer:
        """由 `to_json` 的结果（或任何支持的 tokenizer.json 的内容）还原。"""
        return cls(text)

    @classmethod
    def load(cls, path: Path | str) -> Tokenizer:
        """读 tokenizer.json；给模型目录时读其中的那一份。"""
        path = Path(path)
        if path.is_dir():
            path = path / FILE_NAME
        if not path.exists():
            raise ValueError(
                f"there is no tokenizer at {path}: give a {FILE_NAME} or its directory"
            )
        return cls(read_text(path), str(path))

    # ── 保存 ─────────────────────────────────────────────────────────────────

    def to_json(self) -> str:
        """写成 tokenizer.json 的内容，每个词元一行，便于用眼睛看。"""
        return str(self._plain.to_str(pretty=True))

    def save(self, path: Path | str) -> Path:
        """存为文件（以 .json 结尾）或存进目录；返回写成的文件。"""
        path = Path(path)
        if path.suffix != ".json":
            path.mkdir(parents=True, exist_ok=True)
            path = path / FILE_NAME
        write_text(path, self.to_json())
        return path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Tokenizer, (self._json_text,)

    def __repr__(self) -> str:
        return (
            f"Tokenizer(kind={self.kind!r}, vocab_size={self.vocab_size}, "
            f"fingerprint={self.fingerprint[:12]!r})"
        )

    @property
    def end_id(self) -> int | None:
        """「文章结束」的编号；没有这样的特殊词元时为 None。"""
        known = (self.special_tokens[name] for name in END_TOKENS if name in self.special_tokens)
        return next(known, None)

    # ── 文本 → 编号 ──────────────────────────────────────────────────────────

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """文本 → 编号；只有 allow_special 时，文中的特殊词元名才变成特殊词元。

        错误：孤立的代理码位（lone surrogate）；字符级词表里没有的字符。都给出位置
        """
        check_text(text, "text")
        return self._encode([text], ["text"], allow_special)[0]

    def encode_batch(self, texts: Sequence[str], *, allow_special: bool = False) -> list[list[int]]:
        """一次编码许多段文本，由库分给所有的核；结果与逐段 encode 相同。"""
        texts = list(checked_texts(texts))
        names = [f"texts[{index}]" for index in range(len(texts))]
        return self._encode(texts, names, allow_special)

    def _encode(
        self, texts: list[str], names: Sequence[str], allow_special: bool
    ) -> list[list[int]]:
        if self.kind == "characters":
            for text, name in zip(texts, names, strict=True):
                self._check_alphabet(text, name, allow_special)
        library = self._with_special if allow_special else self._plain
        # fast：不记每个词元在原文中的位置；也不自动加开头、结尾的特殊词元
        batch = library.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in batch]

    def _check_alphabet(self, text: str, name: str, allow_special: bool) -> None:
        """库会悄悄丢掉词表里没有的字符，所以先查，并说清是哪一个、在哪里。"""
        if allow_special and self.special_tokens:
            # 涂掉将要成为特殊词元的部分，长度不变，位置才对得上；同处开始时长的名字优先
            longest_first = sorted(self.special_tokens, key=len, reverse=True)
            pattern = "|".join(map(re.escape, longest_first))
            filler = next(iter(self._alphabet))
            text = re.sub(pattern, lambda match: filler * len(match[0]), text)
        unseen = set(text) - self._alphabet
        if unseen:
            offset = next(i for i, character in enumerate(text) if character in unseen)
            raise ValueError(
                f"{name} holds {text[offset]!r} (U+{ord(text[offset]):04X}) at offset {offset}, which "
                f"is not in the character vocabulary of {self.vocab_size} tokens; build the "
                "vocabulary from text that has it, or use byte-level BPE"
            )

    @cached_property
    def _alphabet(self) -> frozenset[str]:
        special = set(self.special_tokens.values())
        plain = (data.decode("utf-8") for i, data in self._bytes.items() if i not in special)
        return frozenset(plain)

    # ── 编号 → 文本 ──────────────────────────────────────────────────────────

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """编号 → 文本；拼不成 UTF-8 的字节显示为 �（模型可以生成任何编号）。

        公式：先接好全部字节，再解码一次；逐个词元解码会切断汉字
        """
        skipped = set(self.special_tokens.values()) if skip_special else set()
        data = b"".join(self.token_bytes(i) for i in ids if int(i) not in skipped)
        return data.decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """一个词元所代表的字节；可能不是完整的字符。"""
        try:
            return self._bytes[operator.index(token_id)]
        except TypeError:
            kind = type(token_id).__name__
            raise ValueError(f"a token id must be an integer, got {token_id!r} ({kind})") from None
        except KeyError:
            inside = 0 <= token_id < self.vocab_size
            problem = "is an unused id of" if inside else "is outside"
            raise ValueError(
                f"token id {int(token_id)} {problem} this tokenizer, whose ids are "
                f"0..{self.vocab_size - 1} (vocab_size {self.vocab_size}); was it trained with "
                "another tokenizer?"
            ) from None

    def stream(self, *, skip_special: bool = False) -> StreamDecoder:
        """逐个编号解码，只放行完整的字符；每段输出用一个新的。"""
        skipped = self.special_tokens.values() if skip_special else ()
        return StreamDecoder(self.token_bytes, skipped)


def _build(json_text: str, where: str) -> Any:
    """造出库对象；文件里若带着截断、补齐的设置就去掉，否则长文本会被悄悄截短。"""
    try:
        library = tokenizers.Tokenizer.from_str(json_text)
    except Exception as error:  # 库对一切问题都抛裸的 Exception
        raise ValueError(f"{where}: the tokenizers library refuses it: {error}") from None
    library.no_truncation()
    library.no_padding()
    return library


def _keep_forks_serial() -> None:
    """库用过多线程之后，进程若再 fork，子进程里那些线程已不存在，等它们就会卡死。

    所以 fork 的一瞬间声明「子进程单线程」，父进程不变；用户自己设过此变量则不动。
    旧版的库没有这句声明会打印警告
    """
    name = "TOKENIZERS_PARALLELISM"
    ours: list[str] = []

    def before() -> None:
        if name not in os.environ:
            os.environ[name] = "false"
            ours.append(name)

    def after_in_parent() -> None:
        while ours:
            os.environ.pop(ours.pop(), None)

    os.register_at_fork(before=before, after_in_parent=after_in_parent, after_in_child=ours.clear)


if hasattr(os, "register_at_fork"):  # Windows 没有 fork
    _keep_forks_serial()


def demo() -> None:
    """同一句话的两种编号，特殊词元与普通文字，以及存取。"""
    sentence = "举头望明月，低头思故乡。The moon, the moon!"
    print(f"原文 {len(sentence)} 字符，{len(sentence.encode())} 字节：{sentence}\n")
    tokenizers_by_kind = {
        "characters": Tokenizer.characters([sentence]),
        "bpe": Tokenizer.train_bpe([sentence] * 2, 300),
    }
    for kind, tokenizer in tokenizers_by_kind.items():
        ids = tokenizer.encode(sentence)
        tokens = [tokenizer.token_bytes(i) for i in ids]
        print(f"{kind}：词表 {tokenizer.vocab_size}，{len(ids)} 个编号")
        print("  ", " ".join(data.decode("utf-8", "replace").replace(" ", "␣") for data in tokens))
        assert tokenizer.kind == kind
        assert tokenizer.decode(ids) == sentence
        assert b"".join(tokens) == sentence.encode()

    bpe = tokenizers_by_kind["bpe"]
    print("\n特殊词元：用户打出来的只是普通文字，程序明说才算数")
    for allow_special in (False, True):
        ids = bpe.encode(END_OF_TEXT, allow_special=allow_special)
        print(f"   allow_special={allow_special!s:5} → {ids}")
        assert (bpe.end_id in ids) == allow_special
        assert bpe.decode(ids) == END_OF_TEXT

    print("\n没见过的字：字符级无法编码，字节级总有办法")
    try:
        tokenizers_by_kind["characters"].encode("举杯邀明月")
        raise AssertionError("an unseen character was accepted")
    except ValueError as error:
        print("   characters：", error)
    assert bpe.decode(bpe.encode("举杯邀明月")) == "举杯邀明月"
    print("   bpe：", bpe.encode("举杯邀明月"))

    again = Tokenizer.from_json(bpe.to_json())
    assert again.fingerprint == bpe.fingerprint != tokenizers_by_kind["characters"].fingerprint
    print(f"\n写成 JSON 再读回，指纹相同：{again!r}")


if __name__ == "__main__":
    run_demo(demo)
