r"""网上抓来的文本，哪些不该学？——每一条规则是一个可以量的数；丢了多少、为什么丢，都要说出来。

模型学什么，取决于读什么：重复的许可证、乱码、一整页的导航链接，读得越多，写出来的越像它们。
这里的规则都很简单，每条量一个数，与上下限比：

    规则                    量的是                                     想丢掉的
    min_chars / max_chars   字符数                                     只有标题的页；日志、数据转储
    max_symbol_share        不是字母、数字、空白的字符占几成           表格线、代码残片、ASCII 画
    max_unprintable_share   控制字符、私用区、�（U+FFFD）占几成        解码错了的、二进制
    max_repeated_lines      与前面某行相同的行占几成                   导航、模板、刷屏
    dedup                   与前面某篇相同（见 seen_texts.py）         转载、镜像

$$\text{symbol\_share} = \frac{|\{c : c \notin L \cup M \cup N \cup Z\}|}{|\text{text}|}, \qquad
  \text{repeated\_lines} = 1 - \frac{|\text{不同的行}|}{|\text{行}|}$$

L、M、N、Z 是 Unicode 的大类：字母（汉字也是）、附标、数字、分隔；所以中文、阿拉伯文不会吃亏。

    文档 ──▶ 长短 ──▶ 字符 ──▶ 行 ──▶ 重复 ──▶ 留下
               │        │       │       │
               └────────┴───────┴───────┴──▶ CleaningReport：各丢了几篇、几字节，头几个例子

先便宜的后贵的；一篇只算在第一条不合格的规则上，所以各条加起来就是丢掉的总数。

为什么默认全关？  规则总会误伤：代码的符号多，诗的行会重复，词典每条都短。先看例子，再定上限。
为什么要给例子？  「丢了三成」说明不了什么；看三个例子，就知道规则是不是定得太严。
为什么先过滤再去重？ 不合格的文档不必占哈希表的地方。

一步一步看，max_repeated_lines = 0.3，一篇四行的文档：

    首页 │ 关于    ← 第一次见
    今天下雨。     ← 第一次见
    首页 │ 关于    ← 见过
    完。           ← 第一次见            1 − 3/4 = 0.25 ≤ 0.3：留下

各语料上大致合适的起点（先看报告里的例子，再改）：

    语料      min_chars  max_symbol_share  max_repeated_lines  dedup
    网页      200        0.3               0.3                 开
    代码      50         0.5               0.5                 开
    诗词      不用       不用              不用                开
    对话      不用       0.4               不用                开

常见疑问：
    会改动文档吗？        不会：只有留与不留，从不改写一个字。
    顺序要紧吗？          要紧：重复的留第一篇，所以语料的先后不同，留下的就不同。
    多个进程时在哪里做？  在主进程里，读出来就做；规则都很快，慢的是后面的分词。
    语言、内容的好坏？    那要模型来判断（分类器、困惑度），不是一个数能说清的。

试一试：fromzero data prepare 你的语料 --dedup --min-chars 100，看它说丢了什么，再决定要不要。

论文：规则从哪里来 — Rae et al., *Gopher*, arXiv:2112.11446 附录 A；Raffel et al., *C4*,
      arXiv:1910.10683；开源的流程 — Penedo et al., *FineWeb*, arXiv:2406.17557。

改哪里：加一条规则 → Cleaning 添一个字段，_reason 里量它。
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

from foundation.checks import check_bool, check_float, check_int
from foundation.demonstration import run_demo
from training.documents import Document
from training.seen_texts import SeenHashes, content_hash

__all__ = ["Cleaner", "Cleaning", "CleaningReport"]

# 每条规则留几个例子给人看，每个例子多长。
EXAMPLES, EXAMPLE_CHARS = 3, 60


@dataclass(frozen=True, kw_only=True)
class Cleaning:
    """用哪些规则；None 或 False 是不用。默认全不用。"""

    dedup: bool = False
    min_chars: int | None = None
    max_chars: int | None = None
    max_symbol_share: float | None = None
    max_unprintable_share: float | None = None
    max_repeated_lines: float | None = None

    def __post_init__(self) -> None:
        """错误：上下限颠倒、份额不在 [0, 1] 内 → ValueError。"""
        check_bool("dedup", self.dedup)
        for name in ("min_chars", "max_chars"):
            if getattr(self, name) is not None:
                check_int(name, getattr(self, name), 1)
        for name in ("max_symbol_share", "max_unprintable_share", "max_repeated_lines"):
            if getattr(self, name) is not None:
                check_float(name, getattr(self, name), 0.0, 1.0)
        # 份额是 0 到 1 的小数，写成 30 会被拒绝，而不是悄悄当作「不限」
        # 上下限颠倒会丢掉一切；两个数都写出来
        if None not in (self.min_chars, self.max_chars) and self.min_chars > self.max_chars:  # type: ignore[operator]
            raise ValueError(
                f"min_chars must be <= max_chars, got {self.min_chars} and {self.max_chars}"
            )

    @property
    def rules(self) -> dict[str, Any]:
        """用着的规则与它们的上下限。

        >>> Cleaning(dedup=True, min_chars=20).rules
        {'dedup': True, 'min_chars': 20}
        """
        return {name: value for name, value in asdict(self).items() if value not in (None, False)}


@dataclass
class CleaningReport:
    """丢了什么：每条规则各几篇、几字节、头几个例子。"""

    kept: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    dropped_bytes: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def note(self, rule: str, measured: str, document: Document) -> None:
        """记下一篇被丢掉的文档；measured 是量出来的数。"""
        self.dropped[rule] = self.dropped.get(rule, 0) + 1
        # 篇数与字节都记：一篇可以是一行，也可以是一本书
        n_bytes = len(document.text.encode())
        self.dropped_bytes[rule] = self.dropped_bytes.get(rule, 0) + n_bytes
        # 只留头几个：几百万篇都留，就又把语料装进了内存
        examples = self.examples.setdefault(rule, [])
        if len(examples) < EXAMPLES:
            # repr：换行、控制字符都看得见，又不会搅乱终端
            start = document.text[:EXAMPLE_CHARS]
            examples.append(f"{document.source}: {measured}: {start!r}")

    def to_dict(self) -> dict[str, Any]:
        """写进 manifest.json 的样子。"""
        return asdict(self)

    def lines(self) -> list[str]:
        """给人看的几行；一篇也没丢就是空的。"""
        # 分母是读到的全部：份额比个数更说明规则严不严
        total = self.kept + sum(self.dropped.values())
        lines = []
        # 按第一次出现的先后；每条规则一行总数，下面缩进着它的例子
        for rule, count in self.dropped.items():
            size = self.dropped_bytes[rule] / 1e6
            lines.append(f"{rule}: dropped {count:,} of {total:,} documents, {size:.2f} MB")
            lines += [f"  {example}" for example in self.examples[rule]]
        return lines


class Cleaner:
    """按 Cleaning 过滤文档；report 随着文档流过而增长。

    用法：cleaner = Cleaner(Cleaning(dedup=True)); kept = list(cleaner(documents))
    约定：同一个 Cleaner 先后用于两份语料，后一份里与前一份相同的也算重复——
          训练集在前、验证集在后，就不会考学过的题
    """

    def __init__(self, cleaning: Cleaning) -> None:
        self.cleaning = cleaning
        self.report = CleaningReport()
        # 只有 dedup 用到；空表只占几千字节
        self._seen = SeenHashes()

    def __call__(self, documents: Iterable[Document]) -> Iterator[Document]:
        """留下合格的，顺序不变；内存只随「不同的文档数」增长（每篇十几个字节）。"""
        for document in documents:
            # 一次一篇，不攒：前面读、后面分词，都不必等
            reason = self._reason(document.text)
            # 丢掉的也记下来：什么也不说地少了三成，比报错更糟
            if reason is None:
                self.report.kept += 1
                yield document
            else:
                self.report.note(*reason, document)

    def _reason(self, text: str) -> tuple[str, str] | None:
        """不合格的第一条规则与量出来的数；合格是 None。"""
        rules = self.cleaning
        # ① 长短：不看内容
        if rules.min_chars is not None and len(text) < rules.min_chars:
            return "min_chars", f"{len(text)} characters"
        if rules.max_chars is not None and len(text) > rules.max_chars:
            return "max_chars", f"{len(text)} characters"
        # ② 字符：Counter 在 C 里数，只有不同的字符才逐个查它的类
        if rules.max_symbol_share is not None or rules.max_unprintable_share is not None:
            # 两条规则共用一次计数；先看乱码，它比符号多更说明问题
            counts = Counter(text)
            for rule, limit, judge in (
                ("max_unprintable_share", rules.max_unprintable_share, _is_unprintable),
                ("max_symbol_share", rules.max_symbol_share, _is_symbol),
            ):
                share = sum(n for c, n in counts.items() if judge(c)) / max(len(text), 1)
                if limit is not None and share > limit:
                    return rule, f"{share:.1%}"
        # ③ 行：空行不算，段落之间的空行本来就多
        if rules.max_repeated_lines is not None:
            # 只差缩进的算同一行
            lines = [line.strip() for line in text.splitlines() if line.strip()]
            share = 1 - len(set(lines)) / max(len(lines), 1)
            if share > rules.max_repeated_lines:
                return "max_repeated_lines", f"{share:.1%}"
        # ④ 重复：最贵，也只有它记得以前的文档
        if rules.dedup and not self._seen.add(content_hash(text)):
            return "dedup", "seen before"
        return None


@cache
def _is_symbol(character: str) -> bool:
    """不是字母、附标、数字、空白。标点也算符号：正常的文章里它占不到两成。

    >>> [_is_symbol(c) for c in "a春9 ,|\\n"]
    [False, False, False, False, True, True, False]
    """
    return unicodedata.category(character)[0] not in "LMNZ" and not character.isspace()


@cache
def _is_unprintable(character: str) -> bool:
    """控制字符（空白除外）、未分配、私用区、�。格式字符（零宽连接）是正常的文字，不算。

    >>> [_is_unprintable(c) for c in "a\\n\\x07\\ufffd\\u200d"]
    [False, False, True, True, False]
    """
    # 换行、制表符也是控制字符，却是正常的文字
    if character.isspace():
        return False
    return character == "\ufffd" or unicodedata.category(character) in ("Cc", "Cn", "Co", "Cs")


def demo() -> None:
    """六篇，每条规则各丢一篇；看报告怎么说。"""
    texts = {
        "poem": "床前明月光，疑是地上霜。\n举头望明月，低头思故乡。",
        "copy": "床前明月光，疑是地上霜。 举头望明月，低头思故乡。",  # 只差一个换行
        "stub": "完",
        "table": "+-----+-----+\n|  a  |  b  |\n+=====+=====+",
        "broken": "æ\ufffd\ufffd\ufffd\ufffd\x00\x01 text that was decoded wrongly",
        "spam": "buy now\n" * 9 + "the end of the page",
    }
    documents = [Document(text, name) for name, text in texts.items()]
    # 每篇的毛病只有一种，看得出各条规则各管什么
    print("① 默认全关：一篇也不丢")
    print(f"   留下 {len(list(Cleaner(Cleaning())(documents)))} 篇")
    # 上限是为这几篇定的，不是建议
    cleaner = Cleaner(
        Cleaning(
            dedup=True,
            min_chars=5,
            max_symbol_share=0.4,
            max_unprintable_share=0.05,
            max_repeated_lines=0.3,
        )
    )
    # 取完生成器，报告才数得全
    kept = list(cleaner(documents))
    print(f"② 五条规则：留下 {[document.source for document in kept]}")
    assert [document.source for document in kept] == ["poem"]
    for line in cleaner.report.lines():
        print(f"   {line}")
    # 每篇只算在一条规则上，所以加起来就是丢掉的总数
    assert sum(cleaner.report.dropped.values()) == len(texts) - 1
    print("③ 同一个 Cleaner 再读验证集：学过的题不会再考")
    # 验证集的第一篇与训练集里的相同，第二篇是新的
    held_out = [Document(texts["poem"], "val 1"), Document("白日依山尽，黄河入海流。", "val 2")]
    left = [document.source for document in cleaner(held_out)]
    print(f"   留下 {left}")
    assert left == ["val 2"]


if __name__ == "__main__":
    run_demo(demo)
