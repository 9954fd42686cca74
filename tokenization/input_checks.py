r"""哪些文本与参数不能接受，为什么要在门口就拒绝？

分词器的错很少当场发作：一个丢掉的字符、一个撞名的特殊词元，要等模型训完、输出怪异时才被发现。
所以凡是会让 $\mathrm{decode}(\mathrm{encode}(x)) \ne x$ 的输入，一律在这里变成 ValueError，
说明给的是什么、在哪里、允许什么。

    输入                        问题                                  检查
    "\ud83d"（半个表情）        str 能存，却不是字符，没有 UTF-8      check_text
    encode_batch("一段话")      str 也能逐个遍历，会被当成许多段      checked_texts
    字符表里没有的字            库悄悄丢掉它                          check_alphabet
    special_tokens=("a",)       与普通字符 a 撞名，分不清谁是谁       check_special_tokens
    vocab_size=100              装不下 256 个字节，有的文本无法编码   check_vocab_size

半个表情从哪里来：UTF-16 用两个代理码位（surrogate，U+D800…U+DFFF）写一个表情，JSON 的
"\ud83d\ude42" 就是这样；被从中间截断，就留下孤立的一个。

文献：Unicode 标准第 3 章（代理码位不是字符）；RFC 3629（UTF-8 不得编码代理码位）。
改哪里：想接受更短的特殊词元名，先想清楚它怎样与普通文字区分，再改 check_special_tokens。
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from foundation.checks import check_int

__all__ = [
    "END_OF_TEXT",
    "check_alphabet",
    "check_special_tokens",
    "check_text",
    "check_vocab_size",
    "checked_texts",
]

# 「文章到此为止」。名字取得古怪，正是为了不像任何人会写的文字
END_OF_TEXT = "<|endoftext|>"


def check_text(text: str, name: str) -> None:
    r"""文本必须是 str，且不含孤立的代理码位。

    >>> check_text("半个表情 \ud83d", "text")
    Traceback (most recent call last):
    ValueError: text holds the lone surrogate U+D83D at offset 5, which is not a character; ...
    """
    if not isinstance(text, str):
        raise ValueError(f"{name} must be a str, got {type(text).__name__}")
    try:
        # UTF-8 编码器本来就拒绝代理码位，用它比逐字符比较快得多
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} holds the lone surrogate U+{ord(text[error.start]):04X} at offset "
            f"{error.start}, which is not a character; repair the source: perhaps an emoji was "
            "cut in two"
        ) from None


def checked_texts(texts: Iterable[str]) -> Iterator[str]:
    """逐段检查、逐段交出，不把语料全读进内存；出错时说明是第几段。

    >>> list(checked_texts("一段话"))
    Traceback (most recent call last):
    ValueError: texts must be a list (or iterator) of str, got one str; give [text]
    """
    # 把一个 str 当成许多段来遍历，每段只有一个字符：多半是忘了方括号
    if isinstance(texts, str):
        raise ValueError("texts must be a list (or iterator) of str, got one str; give [text]")
    for index, text in enumerate(texts):
        check_text(text, f"texts[{index}]")
        yield text


def check_alphabet(
    text: str,
    name: str,
    alphabet: frozenset[str],
    vocab_size: int,
    special: re.Pattern[str] | None = None,
) -> None:
    """字符级：库会悄悄丢掉词表里没有的字符，所以先查，并说清是哪一个、在哪里。

    alphabet：词表里的普通字符；vocab_size 只写进报错，让人看出是哪个分词器
    special：将要成为特殊词元的部分，不必在字符表里；None 表示没有这回事

    >>> check_alphabet("abc", "text", frozenset("ab"), vocab_size=3)
    Traceback (most recent call last):
    ValueError: text holds 'c' (U+0063) at offset 2, which is not in the character vocabulary...
    """
    if special is not None:
        # 涂掉特殊词元，长度不变，位置才对得上
        # 随便用哪个字都行，只要在字符表里
        filler = next(iter(alphabet))
        text = special.sub(lambda match: filler * len(match[0]), text)
    # 先比集合：合格的文本只走这一步，不必逐字符循环
    unseen = set(text) - alphabet
    if unseen:
        # 报最前面的一个：从它改起
        offset = next(i for i, character in enumerate(text) if character in unseen)
        raise ValueError(
            f"{name} holds {text[offset]!r} (U+{ord(text[offset]):04X}) at offset {offset}, "
            f"which is not in the character vocabulary of {vocab_size} tokens; build the "
            "vocabulary from text that has it, or use byte-level BPE"
        )


def check_special_tokens(special_tokens: Sequence[str]) -> list[str]:
    """特殊词元的名字：不重复，且至少两个字符。

    单个字符会与普通文字撞名：字符级词表里它就是那个字符，字节级里它是某个字节的符号。
    更长的名字是否会被合并拼出来，要看合并表，由 `file_checks.py` 检查
    """
    if isinstance(special_tokens, str):
        raise ValueError(f"special_tokens must be a list of names, got one str {special_tokens!r}")
    names = list(special_tokens)
    for index, name in enumerate(names):
        check_text(name, f"special_tokens[{index}]")
        if len(name) < 2:
            raise ValueError(
                f"a special token needs at least 2 characters, got {name!r}; "
                f"use a name that no text contains, like {END_OF_TEXT!r}"
            )
        if names.count(name) > 1:
            raise ValueError(f"special token {name!r} is given {names.count(name)} times")
    return names


def check_vocab_size(vocab_size: int, n_special: int) -> int:
    """词表至少要装下 256 个单字节与特殊词元，否则有的文本无法编码。

    >>> check_vocab_size(257, n_special=1)
    257
    """
    minimum = 256 + n_special
    if check_int("vocab_size", vocab_size) < minimum:
        raise ValueError(
            f"vocab_size must be at least {minimum} (256 bytes + {n_special} special tokens), "
            f"got {vocab_size}"
        )
    return vocab_size
