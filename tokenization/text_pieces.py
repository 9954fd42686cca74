r"""合并之前，先把文本切成小片，再把小片写成字节：为什么要这两步，规则又是什么？

不切片也能做 BPE，但会学出浪费编号的词元："dog."、"dog!"、"dog?" 各占一个。先按规则切开，
合并从不越过小片的边界，标点就不会粘在词尾；相同的小片只需处理一次，训练也快得多。

    文本      │ x = 3.14;⏎    return 举头望明月
    切片      │ x │ ␣= │ ␣ │ 3 │ . │ 14 │ ;⏎␣␣␣ │ ␣return │ ␣举头望明月
    字节      │ "举" → e4 b8 be                             每个汉字 3 个，表情 4 个
    可见符号  │ "举" → ä ¸ ¾      " " → Ġ      "⏎" → Ċ     tokenizer.json 里这样写

规则是一个正则表达式，满足三件事：

1. 不丢字：$x = p_1 p_2 \cdots p_n$，小片首尾相接就是原文，所以解码能原样还原。
2. 不同语言都不吃亏：英文的词带着前面的空格，代码的缩进连成一片，中文一个分句一片。
3. 每片有上限：一百万个 "a" 连写也只切成许多短片，编码时间与文本长度成正比。
   没有上限时，一整段就是一片，片内合并的代价比长度涨得更快。

文献：Radford 等 2019（GPT-2：先切片、用可见符号写字节）；RFC 3629（UTF-8）。
改哪里：切法 → SPLIT_PATTERN，`bpe.py` 与 `tokenizer.py` 都用它；改了就得重新训练分词器。
        数字想三位一组，改 \p{N} 的上限；想让汉字另成一类，在第一条前面加 \p{Han}。
"""

from __future__ import annotations

import regex

from foundation.demonstration import run_demo

__all__ = ["BASE_BYTES", "LONGEST_PIECE", "SPLIT_PATTERN", "byte_symbols", "split_text"]

# 五条规则，从上往下试，先匹配者得。\p{L} 字母（含汉字），\p{M} 附加符号，\p{N} 数字
SPLIT_PATTERN = (
    # 一串字母，可带走前面的一个非字母：" the"、"(self"、"，明月"。
    # 空格随后面的词走，句中的词于是只有一种写法；换行不带，行首的词与行中的不同类
    r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]{1,24}"
    # 数字两位一组：三位组有上千种，小词表负担不起；一位一组则数字太长
    r"|\p{N}{1,2}"
    # 一串标点，可带前面的一个空格，也带走行尾的换行与下一行的缩进：":⏎␣␣␣"。
    # 缩进的最后一格留给后面的词，好让 "␣return" 在行首与行中是同一个词元
    r"| ?[^\s\p{L}\p{M}\p{N}]{1,16}(?:[\r\n]{1,4}(?:[ \t]{1,16}(?=[ \t]))?)?"
    # 空白，后面若跟着字就留下最后一格（(?!\S) 使匹配退回一格）
    r"|\s{1,16}(?!\S)"
    # 只剩孤零零一个空白时，上一条退无可退，由这一条收下
    r"|\s{1,16}"
)

# 最长的一片：空格 1 + 标点 16 + 换行 4 + 缩进 16（以字符计）
LONGEST_PIECE = 37

# 标准库的 `re` 不认识 \p{L}，所以用 `regex`。它与 `tokenizers` 库里的正则引擎各带一份
# Unicode 表：Unicode 14 已有的字符，两边切法相同；更新的字符，一边可能还当作符号
_SPLITTER = regex.compile(SPLIT_PATTERN)


def split_text(text: str) -> list[str]:
    r"""把文本切成小片；首尾相接恰好是原文，一个字符也不丢。

    >>> split_text("x = 3.14;\n    return 举头望明月")
    ['x', ' =', ' ', '3', '.', '14', ';\n   ', ' return', ' 举头望明月']
    """
    pieces: list[str] = _SPLITTER.findall(text)
    return pieces


def byte_symbols() -> list[str]:
    r"""返回 256 个字节各自的可见符号，tokenizer.json 用它写下任意字节串。

    为什么不直接写字节：JSON 只能存文本，而词元可以是半个汉字，单独看不是合法的文本。
    公式：可见的字节写成同码位的字符；其余 68 个依次写成 U+0100 之后的字符

    >>> symbols = byte_symbols()
    >>> "".join(symbols[byte] for byte in "举 ok\n".encode())
    'ä¸¾ĠokĊ'
    >>> len(set(symbols))
    256
    """
    # 0xAD 是软连字符（soft hyphen），看不见，所以从 Latin-1 的可见区里挖掉
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return [
        chr(byte) if byte in visible else chr(0x100 + hidden.index(byte)) for byte in range(256)
    ]


# 单字节词元按符号的码位编号：可见的在前，其余在后。
# 次数并列时编号小者优先，所以这个看似随意的次序会影响学到什么，必须与库一致
BASE_BYTES = sorted(range(256), key=byte_symbols().__getitem__)

EXAMPLES = {
    "英文": "The dog's 2 bones, isn't it?",
    "中文": "举头望明月，低头思故乡。",
    "代码": "def f(x):\n        return x**2\n",
    "混排": "用Python写3.14个🙂",
}


def demo() -> None:
    """切几种文本，看字节怎样写成符号，并与库逐片对照。"""
    from tokenizers import Regex, pre_tokenizers

    library = pre_tokenizers.Split(Regex(SPLIT_PATTERN), "isolated")
    print("1. 切片（␣ 空格，⏎ 换行）；与 `tokenizers` 库的切法逐片相同")
    for name, text in EXAMPLES.items():
        pieces = split_text(text)
        shown = " │ ".join(pieces).replace("\n", "⏎")
        print(f"   {name}：{shown}")
        assert "".join(pieces) == text
        assert pieces == [piece for piece, _ in library.pre_tokenize_str(text)]

    print("2. 字节与可见符号")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    symbols = byte_symbols()
    for text in ("A", "é", "举", "🙂", " \n"):
        data = text.encode("utf-8")
        written = "".join(symbols[byte] for byte in data)
        print(f"   {text!r:6} → {data.hex(' '):11} → {written}")
        assert byte_level.pre_tokenize_str(text)[0][0] == written

    print("3. 再怪的文本，小片也是短的")
    for unit in ("a", "^", " ", "\n", "月", "7", "^\n \t"):
        pieces = split_text(unit * 100_000)
        longest = max(map(len, pieces))
        print(f"   {unit!r:8} × 100000 → {len(pieces):6d} 片，最长 {longest} 个字符")
        assert longest <= LONGEST_PIECE
    assert len(split_text(" " + "^" * 16 + "\n" * 4 + " " * 17 + "x")[0]) == LONGEST_PIECE


if __name__ == "__main__":
    run_demo(demo)
