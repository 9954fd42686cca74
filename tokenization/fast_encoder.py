r"""同样的编号，快几倍：什么时候可以放心地换一个库来编码？

语料有几十 GB 时，分词要好几个小时。`tiktoken` 编码字节级 BPE 比 `tokenizers` 快好几倍；但「差不多
相同」的编号没有用，所以只在保证逐个相同时才换，别的文本交回去：慢，但不会错。

    一批文本 ──▶ 放心吗？ ──是──▶ tiktoken，几个线程 ──┐
                    │                                  ├──▶ 编号，次序不变
                    └──否──▶ tokenizers ───────────────┘

要一样的有四处，每一处都宁可认少：

    合并        两种规则处处相同，是证明出来的：见 `bpe_ranks.py`
    切片        认得的几种正则表达式之一；两个引擎的 Unicode 表有新有旧，所以只放行
                Unicode 3.2 就有的字符与表情区，其余的交回去
    规范化      没有，或者 NFC；NFC 时只放行对它无动于衷的字符
    加入的词元  普通文字里也认的那些（不特殊的），含有它们的文本交回去

还有一处要防：切片的规则 \s+(?!\S) 遇到几十万个连着的空白，会撑破 tiktoken 的栈。一长串空白里必有
一整块对齐的空白，所以每隔 B 个字符看一块，多半第一个字就看完了；花费只有

$$O(T / B), \qquad \text{长于 } 2B \text{ 的空白一定被发现}$$

编码时 tiktoken 放开了 GIL（全局解释器锁），所以几个线程真的并行；不必另开进程，文本也不必复制。

为什么「Unicode 3.2 就有」算放心？两个引擎都远新于它；一个字符是不是字母、数字、空白，分配之后
几乎不再改。后来添的字符（例如新收的汉字），旧的引擎当它没有分配，新的当它是字母，切法就不同。
Python 里正好带着 3.2 的表（IDNA 域名要用），所以不必自己抄一份。

表情大多是 3.2 之后才有的，却不要紧：那一整块里没有字母、数字、空白，有没有分配都当作符号。

常见疑问：
    为什么不总是用它？      核对词表要零点几秒到一秒多，短短几句话不值得；它也不认 SentencePiece。
    没有装 tiktoken 呢？    照旧用 tokenizers，编号一个不差；pip install 'llm-from-zero[fast]'。
    怎么知道真的相同？      测试在全部放心的字符上、在随机拼出来的文本上逐个核对，每种切法都查。

文献：https://github.com/openai/tiktoken；Unicode 标准附录 15（NFC）。
改哪里：多认一种切法 → KNOWN_PATTERNS；哪些字符放心 → safe_characters；多大才值得用 → `encoder.py`。
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

from foundation.demonstration import run_demo
from tokenization.bpe_ranks import ranks_of
from tokenization.split_rules import GPT2, LLAMA3, QWEN2
from tokenization.text_pieces import SPLIT_PATTERN
from tokenization.tokenizer_file import Specification, added_tokens

__all__ = ["FastEncoder", "safe_characters"]

# 各家的切法，照它们的 tokenizer.json 里写的；两个引擎在放心的字符上切法相同，由测试逐个字符核对
KNOWN_PATTERNS = frozenset({SPLIT_PATTERN, GPT2, LLAMA3, QWEN2})
# 连着这么多个空白的一段，会撑破 tiktoken 的正则引擎的栈
BLANK_RUN = 1 << 13


class FastEncoder:
    """一个字节级 BPE 的快路；由 build 得到，得不到就说明不能保证相同。

    约定：encode 要么给出与慢路逐个相同的编号，要么给 None，绝不给「差不多」的
    造好之后不再改变，可以同时给许多线程用
    """

    def __init__(self, encoding: Any, odd: re.Pattern[str]) -> None:
        self.encoding = encoding
        self.odd = odd  # 找出要交回去的文本：不放心的字符、加入的词元

    @classmethod
    def build(cls, specification: Specification) -> FastEncoder | None:
        """造得出、又证明得了相同，才给；没有装 tiktoken 时也是 None。

        费时的是列出放心的字符（每个进程一次）与核对词表（与词表大小成正比）
        """
        try:
            import tiktoken
        except ImportError:  # pip install 'llm-from-zero[fast]'
            return None
        pattern, ranks = pattern_of(specification), ranks_of(specification)
        if pattern is None or ranks is None:
            return None
        # 名字只在报错里出现；特殊词元一个也不给：普通文字里没有它们
        encoding = tiktoken.Encoding(
            "fast", pat_str=pattern, mergeable_ranks=ranks, special_tokens={}
        )
        # 一个正则表达式管两件事，一遍就查完；
        # 不特殊的加入词元，在普通文字里也要认：含有它们的文本交回去
        names = [e["content"] for e in added_tokens(specification) if not e.get("special")]
        odd = "|".join([*map(re.escape, names), f"[^{safe_characters(_composes(specification))}]"])
        return cls(encoding, re.compile(odd))

    def accepts(self, text: str) -> bool:
        """这段文本上，两个库保证相同吗？

        ASCII 也要查：加入的词元（<think> 之类）多半是 ASCII
        一长串空白里必有一整块对齐的空白，所以隔一块看一块，多半第一个字就看完了
        """
        if self.odd.search(text):
            return False
        blocks = range(0, len(text) - BLANK_RUN + 1, BLANK_RUN)
        return not any(text[i : i + BLANK_RUN].isspace() for i in blocks)

    def encode(self, texts: Sequence[str]) -> list[list[int] | None]:
        """分给几个线程编码；不放心的文本是 None。tiktoken 编码时放开了 GIL，所以真的并行。"""
        # 与 tokenizers 库听同一个开关：许多进程各编各的时，每个再开满线程只会互相抢
        serial = os.environ.get("TOKENIZERS_PARALLELISM", "").lower() in ("false", "0", "off", "no")
        n_threads = 1 if serial else os.cpu_count() or 1
        # 每个线程平均四批：先做完的再领一批，不至于一个忙、一个闲；
        # 一次交一批：几千个短文本逐个交给线程，交接比编码还费时
        size = max(1, -(-len(texts) // (4 * n_threads)))
        groups = [texts[i : i + size] for i in range(0, len(texts), size)]
        with ThreadPoolExecutor(n_threads) as pool:
            return [ids for group in pool.map(self._encode_group, groups) for ids in group]

    def _encode_group(self, texts: Sequence[str]) -> list[list[int] | None]:
        ordinary = self.encoding.encode_ordinary
        return [ordinary(text) if self.accepts(text) else None for text in texts]


def pattern_of(specification: Specification) -> str | None:
    """切片的正则表达式；不是认得的几种之一，就是 None。

    认得的形状有两种：
        ByteLevel(use_regex)                         GPT-2：切法写死在库里
        Sequence[Split(Regex, Isolated), ByteLevel]   Llama 3、Qwen、我们自己的
    每个开关都要对：差一个，切法就不同
    >>> pattern_of({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False}}) == GPT2
    True
    """
    parts = specification.get("pre_tokenizer") or {}
    steps = parts.get("pretokenizers") if parts.get("type") == "Sequence" else [parts]
    # 规范化只认没有，或者 NFC（对放心的字符什么也不做）
    normalizer = specification.get("normalizer")
    if normalizer is not None and normalizer.get("type") != "NFC":
        return None
    if not isinstance(steps, list) or not steps or steps[-1].get("type") != "ByteLevel":
        return None
    last = steps[-1]
    # 字节级的一步总在最后：先切片，再换成可见符号；
    # 句首补空格会改变文本；旧文件不写的，库的默认值是补
    if last.get("add_prefix_space", True):
        return None
    if len(steps) == 1:
        return GPT2 if last.get("use_regex", True) else None
    # isolated：匹配到的各自成片，没匹配到的也保留；别的做法会丢字或并片
    first = steps[0]
    pattern = first.get("pattern", {}).get("Regex") if first.get("type") == "Split" else None
    plain = first.get("behavior") == "Isolated" and not first.get("invert")
    good = len(steps) == 2 and plain and not last.get("use_regex", True)
    return pattern if good and pattern in KNOWN_PATTERNS else None


def _composes(specification: Specification) -> bool:
    return specification.get("normalizer") is not None


# 要扫过一百多万个码位，所以每个进程只算一次
@cache
def safe_characters(composes: bool) -> str:
    r"""两个引擎的 Unicode 表都一样的字符，写成正则表达式方括号里的样子。

    取 Unicode 3.2 就有的（Python 自带那一版的表），加上整块都是符号的表情区：那里没有字母与数字，
    有没有分配都当作符号。composes：还要对 NFC 无动于衷，即单独不变，也不与后面的字合成

    >>> bool(re.match(f"[{safe_characters(False)}]", "月")), "\u0378" in safe_characters(False)
    (True, False)
    """
    old = unicodedata.ucd_3_2_0
    symbols = [range(0x1F110, 0x1FBF0)]
    # 汉字后来补在末尾的几十个不算；代理码位不是字符
    # Cn 没有分配，Cs 代理，Co 私用：都不放行
    codes = [c for c in range(0x110000) if old.category(chr(c)) not in ("Cn", "Cs", "Co")]
    codes += [c for block in symbols for c in block]
    if composes:
        codes = [c for c in codes if _is_inert(chr(c))]
    # 一共几百段，正则引擎查一个字符只要几纳秒；
    # 连着的合成一段 a-b；写成 \U 的形式，就不必管谁在方括号里有特别的意思
    ranges: list[list[int]] = []
    for code in sorted(set(codes)):
        if ranges and code == ranges[-1][1] + 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return "".join(rf"\U{first:08x}-\U{last:08x}" for first, last in ranges)


@cache
def _second_halves() -> frozenset[str]:
    """会与前一个字合成的字符：é 可以写成 e 加一个尖音符，那个尖音符就是。

    取自 Python 自带的分解表；新版 Unicode 添的字符，本来就不在放心之列
    """
    found = set()
    for code in range(0x110000):
        parts = unicodedata.decomposition(chr(code)).split()
        # 以 <…> 开头的是兼容分解（ﬁ → fi），NFC 不管它
        if len(parts) == 2 and not parts[0].startswith("<"):
            found.add(chr(int(parts[1], 16)))
    # 谚文的中声与尾声由公式合成，不在表里
    return frozenset(found | {chr(c) for c in range(0x1161, 0x11C3)})


def _is_inert(character: str) -> bool:
    """NFC 从不改变它，也不让它与别的字合成。

    全由这样的字符写成的文本，规范化之后还是原样；逐个字符判断就够，不必看整段
    """
    if unicodedata.combining(character) or character in _second_halves():
        return False
    return unicodedata.normalize("NFC", character) == character


def demo() -> None:
    """核对词表要多久，两个库各用多少时间，哪些文本交回去。

    这里的数字只是个大概；认真的比较见 benchmarks/tokenizer_speed.py
    """
    import json
    import time

    from tokenization.encoder import Encoder
    from tokenization.tokenizer import Tokenizer

    corpus = ["举头望明月，低头思故乡。The moon, the moon! def f(x): return x + 1\n" * 50] * 40
    # 汉字、英文、代码各有一点，四十段各几千字
    text = Tokenizer.train_bpe(corpus, 400).to_json()
    specification = json.loads(text)
    start = time.perf_counter()
    fast = FastEncoder.build(specification)
    print(f"1. 核对词表、造快路：{time.perf_counter() - start:.2f} 秒（大半是列出放心的字符）")
    if fast is None:
        print(
            "2. 没有装 tiktoken：pip install 'llm-from-zero[fast]'\n3. 编码走 tokenizers\n4. 从略"
        )
        return
    n_bytes = sum(len(text.encode()) for text in corpus)
    times, results = [], []
    # 两条路轮流跑，同一时刻的快慢才可比；
    # 各三遍，取最快的：头一遍要热身，别的程序也在用这台机器
    for encode in (Encoder(specification, text, "here").encode, fast.encode) * 3:
        start = time.perf_counter()
        results.append(encode(corpus))
        times.append(time.perf_counter() - start)
    slow, quick = min(times[::2]), min(times[1::2])
    print(f"2. {n_bytes / 1e6:.1f} MB：tokenizers {n_bytes / slow / 1e6:.1f} MB/s，", end="")
    print(f"tiktoken {n_bytes / quick / 1e6:.1f} MB/s")
    # 六次的结果都相同，才谈得上谁快
    assert all(result == results[0] for result in results)
    print(f"3. 编号逐个相同，共 {sum(len(ids or ()) for ids in results[0])} 个")

    # 前两种交回去，后两种放心；
    # 表情虽然不在 3.2 的表里，整块都是符号
    odd = {"没有分配的字符": "\u0378", "两万个空格": " " * 20_000, "汉字": "好", "表情": "🙂"}
    for name, sample in odd.items():
        print(f"4. {name}：{'放心' if fast.accepts(sample) else '交回去'}")
    assert [fast.accepts(sample) for sample in odd.values()] == [False, False, True, True]


if __name__ == "__main__":
    run_demo(demo)
