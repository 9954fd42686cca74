r"""文本怎样变成编号，又怎样原样变回来？模型只认编号，所以这一步不能丢一个字节。

    $\mathrm{decode}(\mathrm{encode}(x)) = x$，对任何文本 x 成立

    文本  "明月 moon"
      │   characters：一个字符一个编号；词表小，序列长，没见过的字符无法编码
      │       明 月 ␣ m o o n           → 7 个编号
      │   bpe：切片，再从字节开始合并；没有无法编码的文本
      │       明月 │ ␣moon              → 常见的词 1 个编号，生僻的退回几个字节
      ▼
    编号  (T,)  ──模型──▶  编号  ──decode──▶  文本

选哪一种：几百 KB 的小语料、想最快看到结果，用 characters；其余都用 bpe。
两者的损失不能直接比（每个词元装的字节不同），要换算成每字节的比特数（bits per byte）。

这一层还管三件容易忽略的事：

* 特殊词元（special token）是给模型看的标点，例如「文章到此为止」。用户在聊天框里打出
  同样的字，只能算普通文字，否则任何人都能假装文章结束、假装换了说话的人。
* 流式输出时半个汉字不能显示成 �：见 `stream_decoder.py`。
* 接着前文的一段与开头的一段，有的分词器编得不同（开头补一个空格）：见 `sentence_pieces.py`。
* 编号变了而数据没有重做，模型读到的就是乱码：比较 fingerprint 即可发现。

文件名 tokenizer.json，格式与 Hugging Face 的 `tokenizers` 相同，它的程序读来编号一致。

文献：Sennrich 等 2016 (arXiv:1508.07909)（BPE）；Radford 等 2019（字节级 BPE）。
改哪里：切片规则 → `text_pieces.py`；文件检查 → `file_checks.py`；
        认哪些名字作「文章结束」→ END_TOKENS。
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from foundation.demonstration import run_demo
from foundation.files import read_text, write_text
from tokenization.encoder import Encoder
from tokenization.file_checks import check_same_ids, parse_specification
from tokenization.input_checks import END_OF_TEXT, check_alphabet, check_text, checked_texts
from tokenization.library_backend import build_characters, train_byte_level_bpe
from tokenization.split_rules import OWN
from tokenization.stream_decoder import StreamDecoder
from tokenization.tokenizer_file import (
    fingerprint_of,
    kind_of,
    opening_of,
    special_ids,
    token_table,
)
from tokenization.tokenizer_settings import TokenizerSettings, load_settings

__all__ = ["END_OF_TEXT", "FILE_NAME", "StreamDecoder", "Tokenizer"]

FILE_NAME = "tokenizer.json"

# 依次找：我们自己、GPT-2 与 Qwen 的基座；Llama 3；Llama 2 与 Mistral
END_TOKENS = (END_OF_TEXT, "<|end_of_text|>", "</s>")


class Tokenizer:
    """文本 ↔ 编号；由 characters、train_bpe、load 或 from_json 得到，此后不再改变。

    种类：kind 为 "characters"、"bpe"（字节级），或读来的 "sentencepiece"
    大小：编号都在 [0, vocab_size) 内。别人的词表偶有空缺，所以它是最大编号加一，
          模型的嵌入表按它开，才不会越界
    指纹：fingerprint 相同，则任何文本的编号都相同；记在数据文件里，换错分词器就能发现

    >>> tokenizer = Tokenizer.characters(["明月 moon"])
    >>> tokenizer.kind, tokenizer.vocab_size, tokenizer.special_tokens
    ('characters', 7, {'<|endoftext|>': 0})
    """

    def __init__(
        self, json_text: str, where: str = FILE_NAME, settings: TokenizerSettings | None = None
    ) -> None:
        specification = parse_specification(json_text, where)
        # 开头与结束的词元、对话模板；只有模型目录里才有，见 tokenizer_settings.py
        self.settings = settings or TokenizerSettings()
        self.kind = kind_of(specification)
        self.special_tokens: dict[str, int] = special_ids(specification)
        self.fingerprint = fingerprint_of(specification)
        # 每个编号的字节；作为第一个词元时又有什么不同（只有 sentencepiece 不同）
        self._bytes = token_table(specification)
        self._opening = opening_of(specification)
        self.vocab_size = max(self._bytes) + 1
        self._json_text = json_text
        self._encoder = Encoder(specification, json_text, where)
        # 库给后加入的词元重新排号，不理会文件里跳过的编号；两边不一致，解码就会张冠李戴
        vocabulary = self._encoder.vocabulary()
        check_same_ids(specification, vocabulary, where)
        self.settings.check_tokens(vocabulary, where)
        self._eos = vocabulary.get(self.settings.tokens.get("eos_token", ""))

    # 下面两样少有人用到，用到时再造
    @cached_property
    def special_pattern(self) -> re.Pattern[str]:
        """找出特殊词元名的正则表达式；同处开始时长的优先，与库相同。"""
        longest_first = sorted(self.special_tokens, key=len, reverse=True)
        # 一个也没有时：(?!) 永远不匹配
        return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    @cached_property
    def _alphabet(self) -> frozenset[str]:
        # 字符级词表里的普通字符
        special = set(self.special_tokens.values())
        plain = (data.decode("utf-8") for i, data in self._bytes.items() if i not in special)
        return frozenset(plain)

    # ── 得到一个分词器 ──────────────────────────────────────────────────

    @classmethod
    def characters(
        cls, texts: Iterable[str], special_tokens: Sequence[str] = (END_OF_TEXT,)
    ) -> Tokenizer:
        """每个出现过的字符一个编号：特殊词元在前，字符按码位排在后。

        >>> Tokenizer.characters(["abba"]).encode("ab")
        [1, 2]
        """
        return cls(build_characters(texts, special_tokens))

    @classmethod
    def train_bpe(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        special_tokens: Sequence[str] = (END_OF_TEXT,),
        split: str = OWN,
    ) -> Tokenizer:
        """从语料学出至多 vocab_size 个词元；语料太小、再无可合并的对时会少于此数。

        split：切片规则的名字，本书的或别家的，见 split_rules.py
        >>> Tokenizer.train_bpe(["low low lower"], 260).encode("lower")  # low e r
        [258, 69, 82]
        """
        return cls(
            train_byte_level_bpe(texts, vocab_size, special_tokens, split), "the new tokenizer"
        )

    @classmethod
    def from_json(cls, text: str) -> Tokenizer:
        """由 to_json 的结果（或任何支持的 tokenizer.json 的内容）还原。

        >>> tokenizer = Tokenizer.characters(["ab"])
        >>> Tokenizer.from_json(tokenizer.to_json()).fingerprint == tokenizer.fingerprint
        True
        """
        return cls(text)

    @classmethod
    def load(cls, path: Path | str) -> Tokenizer:
        """读 tokenizer.json；给模型目录时读其中的那一份。

        错误：没有这个文件、不是合法的分词器，都是写明路径的 ValueError
        """
        path = Path(path)
        settings = load_settings(path) if path.is_dir() else None
        if path.is_dir():
            path = path / FILE_NAME
        if not path.exists():
            raise ValueError(
                f"there is no tokenizer at {path}: give a {FILE_NAME} or its directory"
            )
        return cls(read_text(path), str(path), settings)

    # ── 保存 ────────────────────────────────────────────────────────────

    def to_json(self) -> str:
        """返回 tokenizer.json 的内容；读入的文件原样返回，不经改写。"""
        return self._json_text

    def save(self, path: Path | str) -> Path:
        """存为文件（以 .json 结尾）或存进目录；返回写成的文件。

        先写在旁边再改名，所以别人任何时候读到的都是完整的一份；
        存进目录时，对话模板等设置也一并写下
        """
        path = Path(path)
        if path.suffix != ".json":
            path.mkdir(parents=True, exist_ok=True)
            if self.settings != TokenizerSettings():
                self.settings.save(path)
            path = path / FILE_NAME
        write_text(path, self.to_json())
        return path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        # 交给别的进程时只带 JSON 与设置，到那边再造库对象
        return Tokenizer, (self._json_text, FILE_NAME, self.settings)

    def __repr__(self) -> str:
        short = self.fingerprint[:12]
        return f"Tokenizer(kind={self.kind!r}, vocab_size={self.vocab_size}, fingerprint={short!r})"

    @property
    def end_id(self) -> int | None:
        """「文章结束」的编号；没有这样的特殊词元时为 None。

        它与「这一轮说完了」不是一回事，后者见 stop_ids

        训练时每篇文章后面接一个它；生成时遇到它就停

        >>> Tokenizer.characters(["ab"]).end_id
        0
        >>> Tokenizer.characters(["ab"], special_tokens=()).end_id is None
        True
        """
        known = (self.special_tokens[name] for name in END_TOKENS if name in self.special_tokens)
        return next(known, None)

    @property
    def stop_ids(self) -> frozenset[int]:
        """生成时遇到就停的编号：「文章结束」，以及设置里的 eos_token（例如「这一轮说完了」）。"""
        # 它不一定是特殊词元，所以到整个词表里找过
        return frozenset(token for token in (self.end_id, self._eos) if token is not None)

    @cached_property
    def start_ids(self) -> list[int]:
        """add_special 在文首加的编号：Llama 与 Mistral 有一个 <s>，多数没有。

        >>> Tokenizer.characters(["ab"]).start_ids
        []
        """
        plain, whole = (self._encoder.encode(["a"], add_special=on)[0] for on in (False, True))
        # 中间那一段是文字自己的，它前面的就是；后面也可能加了（例如 </s>），那不是开头
        places = range(len(whole) - len(plain) + 1)
        return next((whole[:k] for k in places if whole[k : k + len(plain)] == plain), [])

    # ── 文本 → 编号 ─────────────────────────────────────────────────────

    def encode(
        self,
        text: str,
        *,
        allow_special: bool = False,
        continued: bool = False,
        add_special: bool = False,
    ) -> list[int]:
        """文本 → 编号；只有 allow_special 时，文中的特殊词元名才变成特殊词元。

        allow_special 留给程序自己拼的模板；凡是用户写的文字，一律用默认值
        continued：这段文字紧接着前一段，不是开头（sentencepiece 在开头补一个空格）
        add_special：照文件里写的，在两头加上 <s> 之类；我们自己训练的什么也不加
        错误：孤立的代理码位（lone surrogate）；字符级词表里没有的字符。都给出位置

        >>> tokenizer = Tokenizer.characters(["a<|endoftext|>"])
        >>> tokenizer.encode("a<|endoftext|>", allow_special=True)
        [3, 0]
        >>> len(tokenizer.encode("a<|endoftext|>"))
        14
        """
        check_text(text, "text")
        self._check_characters(text, "text", allow_special)
        if continued:
            return self._encoder.encode_continued(text, allow_special)
        return self._encoder.encode([text], allow_special, add_special)[0]

    def encode_batch(self, texts: Sequence[str], *, allow_special: bool = False) -> list[list[int]]:
        """一次编码许多段文本，由库分给所有的核；结果与逐段 encode 相同。

        语料分词用它：几千段一起交，每个核都有事做

        >>> Tokenizer.characters(["ab"]).encode_batch(["ab", "", "b"])
        [[1, 2], [], [2]]
        """
        checked = list(checked_texts(texts))
        for index, text in enumerate(checked):
            self._check_characters(text, f"texts[{index}]", allow_special)
        return self._encoder.encode(checked, allow_special)

    def _check_characters(self, text: str, name: str, allow_special: bool) -> None:
        # 别的种类什么文字都编得了（或变成 <unk>，照它的规矩）
        if self.kind == "characters":
            pattern = self.special_pattern if allow_special else None
            check_alphabet(text, name, self._alphabet, self.vocab_size, pattern)

    # ── 编号 → 文本 ─────────────────────────────────────────────────────

    def decode(
        self, ids: Iterable[int], *, skip_special: bool = False, continued: bool = False
    ) -> str:
        """编号 → 文本；拼不成 UTF-8 的字节显示为 �，因为模型可以生成任何编号。

        公式：text = UTF-8⁻¹(bytes(i₁) ‖ bytes(i₂) ‖ …)，先接好再解码；逐个解码会切断汉字
        错误：编号不是整数、或不在词表里，抛 ValueError 并给出编号与 vocab_size
        continued：这些编号接着前文，例如模型续写的；sentencepiece 才分这个

        >>> tokenizer = Tokenizer.train_bpe(["low low lower"], 260)
        >>> tokenizer.decode([258, 0, 69]), tokenizer.decode([258, 0, 69], skip_special=True)
        ('low<|endoftext|>e', 'lowe')
        """
        skipped = set(self.special_tokens.values()) if skip_special else set()
        # 先藏起特殊词元，再看谁在最前面
        kept = [i for i in map(_as_id, ids) if i not in skipped]
        data = [self.token_bytes(i) for i in kept]
        # 编码时在开头补的空格，解码时去掉；接着前文的，开头的空格是它自己的
        if data and not continued:
            data[0] = self._opening.first.get(kept[0], data[0])
        text = b"".join(data).decode("utf-8", errors="replace")
        return text.removeprefix(" ") if self._opening.strip and not continued else text

    def token_bytes(self, token_id: int) -> bytes:
        """一个词元所代表的字节；可能是半个字符，也可能横跨两个字符。

        >>> Tokenizer.train_bpe(["low low lower"], 260).token_bytes(259)
        b' low'
        >>> Tokenizer.characters(["ab"]).token_bytes(3)
        Traceback (most recent call last):
        ValueError: token id 3 is outside this tokenizer, whose ids are 0..2 (vocab_size 3); ...
        """
        data = self._bytes.get(_as_id(token_id))
        if data is None:
            problem = "unused in" if 0 <= token_id < self.vocab_size else "outside"
            raise ValueError(
                f"token id {token_id} is {problem} this tokenizer, whose ids are "
                f"0..{self.vocab_size - 1} (vocab_size {self.vocab_size}); "
                "were these ids made by another tokenizer?"
            )
        return data

    def stream(self, *, skip_special: bool = False, continued: bool = False) -> StreamDecoder:
        """逐个编号解码，只放行完整的字符；每段输出用一个新的。continued 同 decode。

        公式：各段 push 与最后的 flush 接起来 = decode(全部编号)

        >>> tokenizer = Tokenizer.train_bpe(["low low lower"], 260)
        >>> stream = tokenizer.stream()
        >>> [stream.push(i) for i in tokenizer.encode("月 low")]
        ['', '', '月', ' low']
        """
        skipped = self.special_tokens.values() if skip_special else ()
        return StreamDecoder(self.token_bytes, skipped, None if continued else self._opening)


def _as_id(value: int) -> int:
    """接受一切整数（Python、numpy、单个元素的张量），不接受 3.0。

    张量作字典的键是按身份比较的，所以先换成 Python 的整数，查表才查得到
    """
    try:
        return operator.index(value)
    except TypeError:
        kind = type(value).__name__
        raise ValueError(f"a token id must be an integer, got {value!r} ({kind})") from None


def demo() -> None:
    """同一句话的两种编号，特殊词元与普通文字，没见过的字，存取。"""
    line = "举头望明月，低头思故乡。The moon, the moon!"
    print(f"1. 同一句话：{len(line)} 字符，{len(line.encode())} 字节")
    characters = Tokenizer.characters([line])
    bpe = Tokenizer.train_bpe([line, line], 300)
    for tokenizer in (characters, bpe):
        ids = tokenizer.encode(line)
        tokens = [tokenizer.token_bytes(i) for i in ids]
        print(f"   {tokenizer.kind}：词表 {tokenizer.vocab_size}，{len(ids)} 个编号")
        print("     ", " ".join(data.decode("utf-8").replace(" ", "␣") for data in tokens))
        # 编号 → 字节 → 文本，一个字节都不少
        assert b"".join(tokens) == line.encode()
        assert tokenizer.decode(ids) == line

    print("2. 特殊词元：用户打出来的只是普通文字，程序明说才算数")
    for allow_special in (False, True):
        ids = bpe.encode(END_OF_TEXT, allow_special=allow_special)
        print(f"   allow_special={allow_special!s:5} → {ids}")
        assert (bpe.end_id in ids) == allow_special
        assert bpe.decode(ids) == END_OF_TEXT  # 两种编号，显示出来一样

    print("3. 没见过的「杯」：字符级无法编码，字节级总有办法")
    try:
        characters.encode("举杯邀明月")
        raise AssertionError("an unseen character was accepted")
    except ValueError as error:
        print("   characters：", error)
    print("   bpe：", bpe.encode("举杯邀明月"))
    assert bpe.decode(bpe.encode("举杯邀明月")) == "举杯邀明月"

    again = Tokenizer.from_json(bpe.to_json())
    print("4. 写成 JSON 再读回：", again)
    assert again.fingerprint == bpe.fingerprint != characters.fingerprint


if __name__ == "__main__":
    run_demo(demo)
