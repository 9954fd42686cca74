r"""SentencePiece 一类的分词器（Llama 2、Mistral、T5）：空格也是字，开头为什么多一个？

字节级 BPE 先把文本写成字节；这一类直接在字符上做，两处要另外安排：

    空格      先换成 ▁（U+2581），于是 "▁the" 与 "the" 是两个词元，拼起来就知道哪里有空格
    生僻字    词表里没有的字符，退回它的 UTF-8 字节：龘 → <0xE9><0xBE><0x98>（byte fallback）

    "the 龘"  ──补▁、换▁──▶  "▁the▁龘"  ──切──▶  ▁the  ▁  <0xE9>  <0xBE>  <0x98>
    "the 龘"  ◀──去掉开头的一个空格──  " the 龘"  ◀──换回、拼字节──┘

开头补一个 ▁，是为了让句首的 the 与句中的 the 是同一个词元；解码时再去掉。由此有三个陷阱：

1. 一段一段地编码，每段开头都会补。接着前文写的那一段（对话里的下一句）不该补：continued。
2. 一段一段地解码，每段开头都会去。接着提示续写时，模型写的 "▁world" 开头的空格要留着。
3. 去法有两种：去掉全文开头的一个空格（Llama 2）；去掉第一个词元里的全部 ▁（T5、XLM-R）。

切的办法也有两种。BPE 与 `bpe.py` 相同，按次序合并；Unigram 给每个词元一个对数概率，取总和最大的
切法，一个动态规划就够（Viterbi）：

$$\text{best}(0) = 0, \qquad
\text{best}(j) = \max_{i < j,\ x_{i..j} \in V}\ \text{best}(i) + \log p(x_{i..j})$$

    ▁t h e │ 每个位置只记「到这里为止最好的分数，与最后一个词元从哪里开始」，最后往回走

编号由库来算（`library_backend.py`）；这里写出规则，也写出 Viterbi，演示与库逐个对照。

论文：Kudo & Richardson 2018, *SentencePiece*, arXiv:1808.06226；
      Kudo 2018, *Subword Regularization*（Unigram）, arXiv:1804.10959。
改哪里：认得更多的解码步骤 → decoding_of；哪些部件会在开头补空格 → without_prefix。
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from foundation.demonstration import run_demo

__all__ = ["Decoding", "Opening", "best_split", "decoding_of", "piece_bytes", "without_prefix"]

SPACE = "▁"
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Decoding(NamedTuple):
    """词元怎样变回文字。

    symbol     代表空格的字符，多半是 ▁
    has_bytes  <0xE9> 是一个字节，还是六个普通的字
    first      开头怎样去："strip" 去全文开头的一个空格；"drop" 去第一个词元里的全部 ▁；"keep" 不去
    """

    symbol: str
    has_bytes: bool
    first: str


class Opening(NamedTuple):
    """全文开头与别处的不同：编码时补的空格，解码时去掉。

    first  作为第一个词元时代表的字节；没有列出的与别处相同
    strip  全文的第一个字若是空格，去掉它
    """

    first: dict[int, bytes]
    strip: bool


def decoding_of(steps: list[dict[str, Any]]) -> Decoding | None:
    """由解码的各步认出规则；不是这一类的返回 None。

    认得的写法（方括号里的可以没有）：
        Replace(▁ → 空格) [ByteFallback] [Fuse [Strip(空格, 1)]]     Llama 2、Mistral、Gemma
        [ByteFallback] Metaspace                                     T5、XLM-R

    >>> replace = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    >>> decoding_of([replace, {"type": "ByteFallback"}, {"type": "Fuse"}])
    Decoding(symbol='▁', has_bytes=True, first='keep')
    >>> decoding_of([{"type": "ByteLevel"}]) is None
    True
    """
    names = [step.get("type") for step in steps]
    has_bytes = "ByteFallback" in names
    # 拼字节的一步放在哪里，结果都一样：字节拼出来的字里没有 ▁ 要换
    rest = [step for step in steps if step.get("type") != "ByteFallback"]
    order = [step.get("type") for step in rest]
    if names.count("ByteFallback") > 1 or not rest:
        return None
    if order == ["Metaspace"]:
        symbol = rest[0].get("replacement", SPACE)
        # 旧文件写 add_prefix_space，新文件写 prepend_scheme
        default = "always" if rest[0].get("add_prefix_space", True) else "never"
        kept = rest[0].get("prepend_scheme", default) == "never"
        return Decoding(symbol, has_bytes, "keep" if kept else "drop")
    if order not in (["Replace"], ["Replace", "Fuse"], ["Replace", "Fuse", "Strip"]):
        return None
    pattern = rest[0].get("pattern")
    symbol = pattern.get("String") if isinstance(pattern, dict) else None
    # 换成别的东西、按正则换的，都不是这一类
    if not isinstance(symbol, str) or len(symbol) != 1 or rest[0].get("content") != " ":
        return None
    if order[-1] != "Strip":
        return Decoding(symbol, has_bytes, "keep")
    amounts = [rest[-1].get(key) for key in ("content", "start", "stop")]
    return Decoding(symbol, has_bytes, "strip") if amounts == [" ", 1, 0] else None


def piece_bytes(token: str, decoding: Decoding, *, first: bool = False) -> bytes:
    """一个词元代表的字节；first：它是第一个，而规则是 "drop"。

    >>> rule = Decoding("▁", True, "drop")
    >>> piece_bytes("▁the", rule), piece_bytes("▁the", rule, first=True)
    (b' the', b'the')
    >>> piece_bytes("<0xE9>", rule).hex()
    'e9'
    """
    match = BYTE_TOKEN.fullmatch(token) if decoding.has_bytes else None
    if match:
        # 两个十六进制的数字，就是那个字节
        return bytes.fromhex(match[1])
    # drop：不论第一个词元里有几个 ▁，一个也不留
    blank = "" if first and decoding.first == "drop" else " "
    return token.replace(decoding.symbol, blank).encode("utf-8")


# ── 开头补的空格 ────────────────────────────────────────────────────────


def without_prefix(specification: Mapping[str, Any]) -> tuple[dict[str, Any], bool] | None:
    """去掉「开头补一个空格」的另一份设置，用来编码接着前文的文字；本来就不补的返回 None。

    第二个返回值：每个特殊词元之后是否又算开头。Llama 2 是；prepend_scheme 为 first 的不是

    >>> always = {"pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "always"}}
    >>> without_prefix(always)
    ({'pre_tokenizer': {'type': 'Metaspace', 'prepend_scheme': 'never'}}, True)
    >>> without_prefix({"pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "never"}}) is None
    True
    """
    # 抄一份再改，原来的那份别处还要用
    changed = copy.deepcopy(dict(specification))
    found: list[bool] = []  # 每去掉一处补空格，记一项
    for key in ("normalizer", "pre_tokenizer"):
        if isinstance(changed.get(key), dict):
            changed[key] = _unprefixed(changed[key], found)
    return (changed, any(found)) if found else None


def _unprefixed(part: dict[str, Any], found: list[bool]) -> dict[str, Any] | None:
    """一个部件去掉补空格之后的样子；去掉了什么，记在 found 里（每段都补记 True）。"""
    kind = part.get("type")
    if kind == "Sequence":
        # 规范化与切片各有一个 Sequence，里面的叫法不同
        for name in ("normalizers", "pretokenizers"):
            if isinstance(part.get(name), list):
                parts = [_unprefixed(each, found) for each in part[name]]
                part[name] = [each for each in parts if each is not None]
    elif kind == "Prepend":
        # Llama 2 的写法：规范化的第一步，在每一段前面接一个 ▁
        found.append(True)
        return None
    elif kind == "Metaspace":
        # always 每段都补，first 只补全文的开头，never 不补
        default = "always" if part.get("add_prefix_space", True) else "never"
        scheme = part.get("prepend_scheme", default)
        if scheme != "never":
            found.append(scheme == "always")
            # 旧写法也一并去掉，免得两处打架
            part.pop("add_prefix_space", None)
            part["prepend_scheme"] = "never"
    # 字节级的也可以要求补一个，虽然少见
    elif kind == "ByteLevel" and part.get("add_prefix_space"):
        found.append(True)
        part["add_prefix_space"] = False
    elif kind == "Strip" and part.get("strip_left"):
        # 先削去开头的空格，再补一个：只去掉后一半，接着写的空格就丢了
        part["strip_left"] = False
    return part


# ── Unigram 的切法 ──────────────────────────────────────────────────────


def best_split(text: str, scores: Mapping[str, float]) -> list[str]:
    """总分最高的切法；scores 是每个词元的对数概率，每个单字符都要有。

    公式：best(j) = max over i<j of best(i) + log p(x[i..j])；时间 O(T·L)，L 是最长的词元

    >>> best_split("abab", {"a": -3.0, "b": -3.0, "ab": -2.0, "aba": -2.5})
    ['ab', 'ab']
    """
    longest = max(map(len, scores))
    # 没算到的都是 −∞：凑不出来的切法，永远不会被选中
    best = [0.0] + [-math.inf] * len(text)  # best[j]：前 j 个字符最好的总分
    begins = [0] * (len(text) + 1)  # 最后一个词元从哪里开始
    for j in range(1, len(text) + 1):
        # 最后一个词元是 text[i:j]；再往前就比最长的词元还长
        for i in range(max(0, j - longest), j):
            score = best[i] + scores.get(text[i:j], -math.inf)
            # 并列时留先找到的（长的），与库相同
            if score > best[j]:
                best[j], begins[j] = score, i
    # 往回走：最后一个词元、倒数第二个……
    pieces, j = [], len(text)
    while j > 0:
        pieces.append(text[begins[j] : j])
        j = begins[j]
    return pieces[::-1]


def demo() -> None:
    """训练一个 Unigram，与库对照切法；再看开头的空格与退回字节。"""
    import json

    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    from tokenization.tokenizer import Tokenizer

    library = tokenizers.Tokenizer(models.Unigram())
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.decoder = decoders.Metaspace()
    corpus = ["the cat sat on the mat, the cats sat at the table. "] * 8
    trainer = trainers.UnigramTrainer(
        vocab_size=40, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
    )
    library.train_from_iterator(corpus, trainer)
    vocabulary = json.loads(library.to_str())["model"]["vocab"]
    scores = {piece: score for piece, score in vocabulary if piece != "<unk>"}
    print(f"1. Unigram：{len(vocabulary)} 个词元，各有对数概率；写出来的 Viterbi 与库的切法")
    for word in ("▁the", "▁cats", "▁table", "▁mat"):
        split = best_split(word, scores)
        total = sum(scores[piece] for piece in split)
        print(f"   {word:7} → {' │ '.join(split):20} 总分 {total:.2f}")
        assert split == library.encode(word.replace(SPACE, ""), add_special_tokens=False).tokens

    tokenizer = Tokenizer.from_json(library.to_str())
    ids = tokenizer.encode("the cat")
    # 同一串编号，从头解码与接着前文解码，差一个空格
    print(f"2. 'the cat' → {library.encode('the cat', add_special_tokens=False).tokens}")
    print(
        f"   从头解码 {tokenizer.decode(ids)!r}，接着前文 {tokenizer.decode(ids, continued=True)!r}"
    )
    assert tokenizer.decode(ids) == "the cat"
    assert tokenizer.decode(ids, continued=True) == " the cat"
    # 接着前文编码：不补空格，于是 "ca" + "ts" 与 "cats" 的文字相同
    pieces = [tokenizer.encode("the ca"), tokenizer.encode("ts", continued=True)]
    print(f"3. 分两段编码再接起来：{tokenizer.decode(pieces[0] + pieces[1])!r}")
    assert tokenizer.decode(pieces[0] + pieces[1]) == "the cats"
    assert tokenizer.decode(pieces[0] + tokenizer.encode("ts")) == "the ca ts"

    rule = Decoding(SPACE, has_bytes=True, first="strip")
    tokens = ["▁", "<0xE9>", "<0xBE>", "<0x98>"]
    text = b"".join(piece_bytes(token, rule) for token in tokens).decode()
    print(f"4. 退回字节的生僻字：{' '.join(tokens)} → {text!r}，再去掉开头的一个空格")
    assert text == " 龘"


if __name__ == "__main__":
    run_demo(demo)
