r"""「汉字」「不是引号的字符」怎样变成字节？——字符的范围，拆成几条字节的小路。

UTF-8 把码位的二进制位装进一到四个字节，首字节说明共有几个，后面的都在 80 到 BF 之间：

    U+0000 – U+007F      0xxxxxxx
    U+0080 – U+07FF      110xxxxx 10xxxxxx
    U+0800 – U+FFFF      1110xxxx 10xxxxxx 10xxxxxx
    U+10000 – U+10FFFF   11110xxx 10xxxxxx 10xxxxxx 10xxxxxx

字典序相同：码位小的，字节串也小。可是一段码位不是一段字节串的乘积，后面的字节能取什么，
要看前面的。所以切成几截，每一截里各字节互不相干：

$$[\text{U+00FF}, \text{U+0101}] = \{C3\}\times\{BF\} \;\cup\; \{C4\}\times[80, 81]$$

切法：只要后面的字节没有取遍 80–BF，它前面的字节就得固定；不齐的头与尾各切下来。

集合只用两样运算就够了：补集，与「合起来」。

    A ∪ B = 合起来        A ∩ B = (Aᶜ ∪ Bᶜ)ᶜ        A − B = (Aᶜ ∪ B)ᶜ

常见疑问：
    为什么没有代理区（U+D800 到 U+DFFF）？  那是 UTF-16 拼字用的半个字符，UTF-8 里不许出现
    为什么 \d 只有十个数字？                re.ASCII 与 JSON Schema 都是如此；全角的 ０ 不算
    组合的字形（é 可以是 e 加一撇）呢？      算两个字符；字符在这里就是码位

文献：RFC 3629（UTF-8）；Thompson 与 Pike 1992 的设计。

改哪里：加一类字符（如汉字）→ CLASSES，写法就成了 \ 加那个字母；换一种编码 → utf8_spans。
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

from foundation.demonstration import run_demo
from inference.automaton import ByteAutomaton, Chain, Either, Node, Span

__all__ = ["ANY", "CLASSES", "Ranges", "characters", "complement", "difference"]

Ranges: TypeAlias = "Sequence[tuple[int, int]]"  # 码位，两端都算

LAST_CHARACTER = 0x10FFFF
SURROGATES = (0xD800, 0xDFFF)
ANY = [(0, LAST_CHARACTER)]


def complement(ranges: Ranges) -> list[tuple[int, int]]:
    """不在其中的全部字符；结果排好了序，互不重叠，所以取两次补集就是整理。

    >>> complement([(0, 96), (98, 0x10FFFF)])
    [(97, 97)]
    """
    found, begin = [], 0
    for low, high in sorted(ranges):
        # 上一段的末尾到这一段的开头，中间空着的
        if begin < low:
            found.append((begin, low - 1))
        # 重叠的、套在里面的：取走得更远的那个
        begin = max(begin, high + 1)
    return [*found, (begin, LAST_CHARACTER)] if begin <= LAST_CHARACTER else found


def difference(ranges: Ranges, excluded: Ranges) -> list[tuple[int, int]]:
    """在 ranges 里、不在 excluded 里的。

    >>> difference([(97, 122)], [(98, 98), (121, 200)])
    [(97, 97), (99, 120)]
    """
    return complement([*complement(ranges), *excluded])


def single(letter: str) -> list[tuple[int, int]]:
    """只有一个字符的集合。

    >>> single("a")
    [(97, 97)]
    """
    return [(ord(letter), ord(letter))]


DIGIT = [(0x30, 0x39)]
WORD = [*DIGIT, (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)]
SPACE = [(0x09, 0x0D), (0x20, 0x20)]
# 反斜杠之后的字母 → 一类字符；大写的是它的补集
CLASSES = {"d": DIGIT, "w": WORD, "s": SPACE}
CLASSES |= {name.upper(): complement(ranges) for name, ranges in CLASSES.items()}
# 打不出来的几个：反斜杠加一个字母
CLASSES |= {name: single(char) for name, char in zip("ntrfv", "\n\t\r\f\v", strict=True)}


def utf8_spans(low: int, high: int) -> Iterable[Chain]:
    """码位从 low 到 high 的字符 → 几条小路，每条路上各字节的范围互不相干。

    切一刀就交给自己再看；至多十几条
    """
    # ① 避开代理区
    begin, end = SURROGATES
    if low <= end and high >= begin:
        for first, last in ((low, begin - 1), (end + 1, high)):
            if first <= last:
                yield from utf8_spans(first, last)
        return
    # ② 字节数不同的分开
    cuts = [limit for limit in (0x7F, 0x7FF, 0xFFFF) if low <= limit < high]
    # ③ 末 n 个字节若没有取遍（mask 的每一位都能取 0 也能取 1），不齐的头、不齐的尾切下来
    for n in (1, 2, 3):
        mask = (1 << 6 * n) - 1  # 末 n 个字节装着的位
        if low > 0x7F and low & mask and low | mask < high:
            cuts.append(low | mask)
        if low > 0x7F and high & mask != mask and high & ~mask > low:
            cuts.append((high & ~mask) - 1)
    if cuts:
        yield from utf8_spans(low, cuts[0])
        yield from utf8_spans(cuts[0] + 1, high)
        return
    #    每次只切第一刀，两半各自再看：写起来最短，也不会切出空的
    # ④ 不用再切：两端的字节一一对应，就是各字节的范围
    pairs = zip(chr(low).encode(), chr(high).encode(), strict=True)
    yield Chain(tuple(Span(a, b) for a, b in pairs))


def characters(ranges: Ranges) -> Node:
    """这些字符中的任何一个，写成 UTF-8；空的集合就是一条走不通的路。"""
    return Either(tuple(path for low, high in ranges for path in utf8_spans(low, high)))


def demo() -> None:
    """几个范围拆成的小路；每条路都与逐个编码对照。"""
    cases = {
        "ASCII 小写": (0x61, 0x7A),
        "跨一二字节": (0x7E, 0x81),
        "汉字": (0x4E00, 0x9FFF),
        "跨代理区": (0xD7FF, 0xE000),
        "全部": (0, LAST_CHARACTER),
    }
    for name, (low, high) in cases.items():
        paths = list(utf8_spans(low, high))
        print(f"{name}　U+{low:04X} 到 U+{high:04X}：{len(paths)} 条小路")
        for path in paths:
            spans = [part for part in path.parts if isinstance(part, Span)]
            print("   " + " ".join(f"{span.low:02X}–{span.high:02X}" for span in spans))
        # 两端、以及两端之外的一步，逐个试
        machine = ByteAutomaton(characters([(low, high)]), name)
        for code in (low - 1, low, (low + high) // 2, high, high + 1):
            if 0 <= code <= LAST_CHARACTER and not SURROGATES[0] <= code <= SURROGATES[1]:
                assert machine.matches(chr(code).encode()) == (low <= code <= high)
    # 不是 UTF-8 的字节串：代理区写成的，过长的写法
    assert not machine.matches(b"\xed\xa0\x80")
    assert not machine.matches(b"\xc0\x80")
    # 九个：起点、终点，末尾还差一二三个字节的各一个，四个首字节特别的（E0 ED F0 F4）
    print(f"任意一个字符的机器：{len(machine.table) - 1} 个状态")
    assert len(machine.table) - 1 == 9


if __name__ == "__main__":
    run_demo(demo)
