r"""别家怎样切片？——认得几条写死在别人程序里的规则，学分词器时就能选一条，导出才不走样。

切片规则（`text_pieces.py`）决定合并的边界，所以它是分词器的一部分。tokenizer.json 里写得下任何
正则；GGUF（llama.cpp 的格式）却只写得下一个名字，正则编译在 llama.cpp 里：

    训练：选一条规则 ──▶ tokenizer.json 写着正则 ──▶ GGUF 只写名字 ──▶ llama.cpp 照名字切
                                                      对得上，编号才逐个相同

所以想把自己练的模型交给 llama.cpp、Ollama，最好一开始就用它认得的规则学分词器：

    fromzero tokenizer train my.txt --split llama-bpe

那为什么不干脆都用别家的？两样代价，都在演示里量：

    代码变长    别家的规则不把「标点 + 换行 + 缩进」合成一片，同样大的词表，代码多用约一成词元
    片没有上限  别家是 \p{L}+，一百万个 "a" 就是一片；片内合并不再是线性的时间

$$T_{\text{encode}} = \sum_i O(n_i \log n_i), \qquad
  \text{有上限时 } n_i \le L \;\Rightarrow\; T = O(N \log L)$$

学的时候更糟：一片长 $n$，每学一条合并都要重走一遍它，代价 $O(n \cdot V)$。语料里混进一行 base64，
就能拖上几分钟。所以学的时候另加一步，把长片截成 LONGEST_LEARNED 个字符；这一步只影响数次数，
不写进 tokenizer.json，编码照别家的规则，一个字不差。

常见疑问：
    已经用自己的规则练好了模型呢？ 分词器换不得：编号换了，词向量就对不上。导出时可以明说近似
        （--pretokenizer），或不带分词器，由我们编号。
    选哪一条？ llama-bpe 的数字三位一组、与 Llama 3 相同；qwen2 一位一组，小词表的算术学得好些。

论文：Radford et al. 2019 (GPT-2)；Dubey et al. 2024 (Llama 3)；Qwen Team 2024 (Qwen2)。
改哪里：多认一条规则 → SPLITS 加一项；它在 llama.cpp 里的名字要由 tests/parity 逐字核对。
"""

from __future__ import annotations

from typing import Any, NamedTuple

from foundation.demonstration import run_demo
from tokenization.text_pieces import SPLIT_PATTERN

__all__ = ["GPT2", "LLAMA3", "LONGEST_LEARNED", "OWN", "QWEN2", "SPLITS", "SplitRule"]

OWN = "own"  # 本书自己的规则，见 text_pieces.py
# 学的时候，更长的片在这里截断；一个词元几乎不会这么长
LONGEST_LEARNED = 64

# 几条规则共用的部分：
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"  # 英文缩写：it's → it │ 's
_LETTERS = r"|[^\r\n\p{L}\p{N}]?\p{L}+"  # 一串字母，可带前面的一个非字母
_MARKS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|"  # 一串标点，可带一个空格与行尾
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"  # 换行成片；其余空白给后面的词留一格

# ByteLevel 自带的那一条，写死在 tokenizers 库里
GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = _CONTRACTIONS + _LETTERS + r"|\p{N}{1,3}" + _MARKS + _SPACES  # 数字三位一组
QWEN2 = _CONTRACTIONS + _LETTERS + r"|\p{N}" + _MARKS + _SPACES  # 数字一位一组
# Qwen3.5 起，附加符号（\p{M}）跟着字母走
QWEN35 = (
    _CONTRACTIONS
    + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|"
    + _SPACES
)


class SplitRule(NamedTuple):
    """一条规则：tokenizer.json 里 pre_tokenizer 的各步，与模型的一个开关。"""

    steps: list[dict[str, Any]]
    # 整片恰是一个词元时不再合并：是不是这样，llama.cpp 也是照名字定的
    ignore_merges: bool = False


def _split(pattern: str) -> dict[str, Any]:
    """按正则切开；Isolated：匹配到的各自成片，没匹配到的也保留，一个字符都不丢。"""
    regex = {"Regex": pattern}
    return {"type": "Split", "pattern": regex, "behavior": "Isolated", "invert": False}


def _bytes(use_regex: bool = False) -> dict[str, Any]:
    """把每片的字节换成可见符号；use_regex 是「先用自带的正则切」。不在开头补空格。"""
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


# 名字 → 规则；除了自己的，名字都是 llama.cpp 的叫法。llama.cpp 认得几十种，这里只收常见的开放
# 模型用得着的，每种都由测试让 llama.cpp 逐字核对过编号
SPLITS: dict[str, SplitRule] = {
    OWN: SplitRule([_split(SPLIT_PATTERN), _bytes()]),
    "gpt-2": SplitRule([_bytes(use_regex=True)]),
    # 先把数字一位一位切开
    "smollm": SplitRule([{"type": "Digits", "individual_digits": True}, _bytes(use_regex=True)]),
    "llama-bpe": SplitRule([_split(LLAMA3), _bytes()], ignore_merges=True),  # Llama 3
    "qwen2": SplitRule([_split(QWEN2), _bytes()]),  # Qwen2、Qwen3
    "qwen35": SplitRule([_split(QWEN35), _bytes()]),  # Qwen3.5
}


def demo() -> None:
    """同一行代码，各家怎样切；同样的语料与词表，各要几个词元；一长串怪字符怎样。"""
    from tokenization.library_backend import split_parts
    from tokenization.tokenizer import Tokenizer

    line = "if x == 2024:\n        return {'月': 1}"
    print("1. 同一行代码（␣ 空格，⏎ 换行）")
    for name, rule in SPLITS.items():
        # 只要切法，不要换成字节符号：那一步不改变边界，除了自带正则的几家
        parts = split_parts(rule)
        pieces = [line[first:last] for _, (first, last) in parts.pre_tokenize_str(line)]
        # 不丢字：偏移量首尾相接
        assert "".join(pieces) == line
        shown = " │ ".join(pieces).replace(" │ ", "\0").replace(" ", "␣").replace("\0", " │ ")
        print(f"   {name:<10}{len(pieces):3} 片：{shown}".replace("\n", "⏎"))

    # 语料就是一段有缩进的代码，重复几遍
    corpus = ["def f(x):\n    if x > 10:\n        return x * 2\n\n    return [x, x + 1]\n"] * 20
    print("2. 同样的语料学 300 个词元，编这段代码要几个（越少越好）")
    counts = {}
    for name in SPLITS:
        tokenizer = Tokenizer.train_bpe(corpus, 300, split=name)
        counts[name] = len(tokenizer.encode(corpus[0]))
        print(f"   {name:<10}{counts[name]:3} 个")
    assert counts[OWN] == min(counts.values())

    print(
        f"3. 语料里混进一行 5 万个 q9zk：学的时候截成 {LONGEST_LEARNED} 个字符，所以不慢；编码照旧"
    )
    junk = "qzk" * 50_000
    tokenizer = Tokenizer.train_bpe([*corpus, junk], 300, split="qwen2")
    assert tokenizer.decode(tokenizer.encode(junk)) == junk
    # 写进文件的还是原来的规则，没有截断的那一步
    assert f"{{1,{LONGEST_LEARNED}}}" not in tokenizer.to_json()
    print(f"   还原无误，{len(junk):,} 个字符 → {len(tokenizer.encode(junk)):,} 个词元")


if __name__ == "__main__":
    run_demo(demo)
