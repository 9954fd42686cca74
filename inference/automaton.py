r"""「合格的文本」怎样写成一台机器？——从规则到状态表：每读一个字节走一步，走不动就是不合格。

一台有限自动机（finite automaton）就是一张表。从起点出发，每读一个字节查一次：

$$q_{t+1} = \delta(q_t, b_t), \qquad \text{合格} \iff q_n \in F$$

    规则 ab*c|d        状态   a   b   c   d
                       ▶ 1    2   ·   ·   3        · 是 0 号：死状态，进去就出不来
                         2    ·   2   3   ·
                         3 ✓  ·   ·   ·   ·        ✓ 可以到此为止

为什么按字节，不按字符？词元是字节串，常常断在一个汉字的中间；按字节走，断在哪里都有状态可查。
汉字于是成了几个字节的小路：「春」是 E6 98 A5；一段字符怎样拆成字节，见 character_sets.py。

    规则 ──▶ 树（Span、Chain、Either、Repeat）──▶ 非确定的机器（NFA）──▶ 确定的机器（表）
                                              从右往左搭                 子集构造

两步各有一个要点：

  · 从右往左搭：build(树, 走完之后去哪) → 起点。「从这里起该吃什么」相同的零件只造一个，
    后半截相同的路就自然合成一条
  · 子集构造（subset construction）：NFA 可能同时站在几个状态上，把「站在哪几个」看成一个状态。
    最坏有 2ⁿ 个，(a|b)*a(a|b){20} 就是；所以设上限，超过就说清楚

顺便算好每个状态离「合格」至少还差几个字节：只剩几步可写时，要靠它往回赶。

常见疑问：
    为什么不用 Python 的 re？    它只会说「整段合不合格」，不会说「写到这里还有没有救」
    括号套括号认得吗？          层数不限的认不得，那要用栈；层数有限的可以，展开就是
    状态多了会慢吗？            写的时候不会，每个字节都只查一次表；只是表大，搭得久
    为什么不把状态合并到最少？  合并（minimization）省内存，不改变答案；从右往左搭已经省下大半

常见的错法：
    忘了 ε 可以绕圈        (a*)* 里，什么也不写也能回到岔口：找「能站到哪」时会转不出来
    死路没有剪掉            走得动，却永远到不了合格：写到最后才发现，已经来不及
    相邻的范围没有切开      a–m 与 k–z 同时在场，k 该两边都走

代价：搭表要 O(S · 分段数) 步，只在建规则时付一次；写的时候，每个字节一次查表。
表按 int32 存，S 个状态占 S KB；上限两万个，也就是 20 MB。

文献：Thompson 1968（正则表达式 → NFA）；Rabin 与 Scott 1959（子集构造）。

改哪里：规则的写法 → regex_syntax.py、json_schema.py；词元怎样在表上走 → token_guide.py；
       放宽上限 → MOST_STATES（表占 状态 × 1 KB）。
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import numpy as np

from foundation.demonstration import run_demo

__all__ = ["ByteAutomaton", "Chain", "Either", "Node", "Repeat", "Span", "literal"]

MOST_STATES = 20_000  # 确定的机器至多这么大
MOST_PIECES = 200_000  # 搭的时候至多这么多零件
DEAD, START = 0, 1  # 每张表都这样排
FAR = 2**30  # 到不了


# 树的结点按身份比较（eq=False）：同一个对象用在两处，搭的时候才认得出来，只搭一遍
@dataclass(frozen=True, eq=False)
class Span:
    """一个字节，在 low 与 high 之间，两端都算。

    只有它真的吃掉输入，其余三种都只管次序
    """

    low: int
    high: int


@dataclass(frozen=True, eq=False)
class Chain:
    """一个接一个；空的就是「什么也不写」。

    例：春 = Chain(Span(E6, E6), Span(98, 98), Span(A5, A5))
    """

    parts: tuple[Node, ...]


@dataclass(frozen=True, eq=False)
class Either:
    """任选其一；空的就是「怎样都不行」。

    几条可以有相同的开头：子集构造会同时走在上面，直到分得出来
    """

    parts: tuple[Node, ...]


@dataclass(frozen=True, eq=False)
class Repeat:
    """重复 low 到 high 遍；high 为 None 就没有上限。"""

    part: Node
    low: int
    high: int | None


Node: TypeAlias = "Span | Chain | Either | Repeat"


def literal(text: str) -> Node:
    """一段照抄的文字。"""
    return Chain(tuple(Span(byte, byte) for byte in text.encode()))


class Pieces:
    """非确定的机器：每个零件要么吃一个字节，要么不吃就岔开。0 号是终点。"""

    def __init__(self, where: str) -> None:
        self.where = where  # 出错时怎样称呼这条规则
        self.eats: list[tuple[int, int, int] | None] = [None]  # （从，到，去哪）
        self.forks: list[list[int]] = [[]]
        # （结点，去哪）→ 起点：同样的后半截只搭一遍
        self.built: dict[tuple[int, ...], int] = {}

    def add(self, eats: tuple[int, int, int] | None, forks: list[int]) -> int:
        """添一个零件；多得离谱就是 {m,n} 套了 {m,n}。"""
        if len(self.eats) >= MOST_PIECES:
            raise ValueError(
                f"{self.where} is too large: it needs more than {MOST_PIECES:,} pieces; "
                "lower its repetition counts"
            )
        # 用到 {m,n} 时零件成倍地多，所以在这里拦，而不是等内存用完
        # 编号就是位置：两张表一起变长
        self.eats.append(eats)
        self.forks.append(forks)
        return len(self.eats) - 1

    def build(self, node: Node, after: int) -> int:
        """搭好 node，走完之后去 after；返回它的起点。"""
        # 一个字节按内容认，别的按身份认
        key = (node.low, node.high, after) if isinstance(node, Span) else (id(node), after)
        if key not in self.built:
            self.built[key] = self._build_new(node, after)
        return self.built[key]

    def _build_new(self, node: Node, after: int) -> int:
        """五种结点各怎么搭。

        Chain    a → b → after
        Either   岔口 ─┬→ a → after        Repeat   岔口 ⇄ a        （没有上限）
                       └→ b → after                 └→ after
        """
        if isinstance(node, Span):
            return self.add((node.low, node.high, after), [])
        if isinstance(node, Chain):
            # 空的 Chain 什么也不做，起点就是 after。
            # 从右往左：每一段都要先知道下一段的起点
            for part in reversed(node.parts):
                after = self.build(part, after)
            return after
        if isinstance(node, Either):
            # 一个岔口，通向每一条；一条也没有就是死路
            return self.add(None, [self.build(part, after) for part in node.parts])
        assert isinstance(node, Repeat)
        if node.high is None:
            # 圈：走完一遍回到岔口，再来一遍或者离开
            begin = self.add(None, [after])
            self.forks[begin].append(self.build(node.part, begin))
        else:
            # 可有可无的几遍：每一遍之前都能直接离开
            begin = after
            for _ in range(node.high - node.low):
                begin = self.add(None, [self.build(node.part, begin), after])
        # 必须有的几遍：一遍接一遍，没有岔口
        for _ in range(node.low):
            begin = self.build(node.part, begin)
        return begin

    def reach(self, starts: Iterable[int]) -> frozenset[int]:
        """不吃字节就能站到的（ε-closure）：只留下吃字节的与终点，岔口本身不必记。

        岔口可以绕成圈（空的东西重复许多遍），所以要记得去过哪里
        """
        seen, stack, found = set(), list(starts), set()
        while stack:
            piece = stack.pop()
            if piece in seen:
                continue
            seen.add(piece)
            if piece == 0 or self.eats[piece] is not None:
                found.add(piece)
            stack.extend(self.forks[piece])
        return frozenset(found)


class ByteAutomaton:
    """确定的机器。

    形状：table (S, 256) int32，table[q, b] 是下一个状态；accepting (S,) 布尔；
          distance (S,)，至少还差几个字节
    约定：0 号是死状态，1 号是起点；其余每个状态都走得到合格
    错误：状态太多、没有任何文本合格 → ValueError，写明规则是哪一条
    """

    def __init__(self, node: Node, where: str) -> None:
        self.where = where
        pieces = Pieces(where)
        start = pieces.reach([pieces.build(node, 0)])
        # 一个零件也站不上：树里有空的「任选」，谁也走不过去
        if not start:
            raise ValueError(f"no text at all can match {where}")
        # ① 子集构造：numbers 记下「站在哪几个零件上」是几号状态
        numbers, waiting = {frozenset[int](): DEAD, start: START}, deque([start])
        rows: list[np.ndarray] = [np.zeros(256, dtype=np.int32)]
        #    排在前面的先看，所以第 i 行正是第 i 号状态的
        while waiting:
            row: np.ndarray = np.zeros(256, dtype=np.int32)
            for low, high, target in moves(pieces, waiting.popleft()):
                # 没见过的站法就是一个新状态，排队等着看它的出路
                if target not in numbers:
                    numbers[target] = len(numbers)
                    waiting.append(target)
                row[low:high] = numbers[target]
            rows.append(row)
            if len(numbers) > MOST_STATES:
                raise ValueError(
                    f"{where} is too large: it needs more than {MOST_STATES:,} states; "
                    "simplify it or lower its repetition counts"
                )
        self.table = np.stack(rows)  # (S, 256)
        self.accepting = np.array([0 in places for places in numbers])  # (S,)
        # ② 从合格的倒着走，一圈一圈地数
        self.distance = self._distances()
        if self.distance[START] == FAR:
            raise ValueError(f"no text at all can match {where}")
        #    起点都走不到，就是没有任何文本合格：例如 [^\s\S] 里一个字符也没有
        # ③ 走不到合格的一律并入死状态，「活着」从此就是「还有救」
        self.table[self.distance[self.table] == FAR] = DEAD

    # 每个状态由谁一步走来；表是「去哪」，倒过来才好从合格的往回数
    def _distances(self) -> np.ndarray:
        # 集合去掉重复：256 个字节多半去同几个地方
        backward: list[set[int]] = [set() for _ in self.table]
        for state, row in enumerate(self.table):
            for target in set(row.tolist()):
                backward[target].add(state)
        return count_back(self.accepting, backward)

    def matches(self, data: bytes) -> bool:
        """整段合格吗？

        例：规则 ab*c，b"abbc" 合格，b"ab" 还差一个字节
        """
        # 死状态的整行都是 0：进去之后怎样走都还在里面，不必提前退出
        state = START
        for byte in data:
            state = int(self.table[state, byte])
        return bool(self.accepting[state])


def moves(pieces: Pieces, places: frozenset[int]) -> list[tuple[int, int, frozenset[int]]]:
    """从这些零件出发：（从，到（不含），站到哪几个）；同一段里的字节去处相同。

    例：一个吃 a–m、一个吃 k–z，分成 a–j、k–m、n–z 三段，中间那段两个都走
    """
    edges = [edge for place in places if (edge := pieces.eats[place]) is not None]
    # 两个相邻的分界之间，能吃的是同一批零件
    borders = sorted({border for low, high, _ in edges for border in (low, high + 1)})
    found = []
    for low, high in pairwise(borders):
        inside = {after for first, last, after in edges if first <= low and high <= last + 1}
        # 谁也不吃的一段，inside 是空的，能站到的也是空的：那就是死状态
        found.append((low, high, pieces.reach(inside)))
    return found


def count_back(accepting: np.ndarray, backward: Sequence[Iterable[int]]) -> np.ndarray:
    """每个状态至少几步走到合格；走不到的是 FAR。backward[q] 是一步就能走到 q 的。"""
    # FAR 与任何步数比都更远，又大不到加一就溢出
    distance: np.ndarray = np.full(len(accepting), FAR, dtype=np.int64)
    distance[accepting] = 0
    queue = deque(np.flatnonzero(accepting).tolist())
    while queue:
        state = queue.popleft()
        for before in backward[state]:
            # 每一步的代价都是一，所以不用更复杂的最短路算法。
            # 广度优先：第一次到的就是最近的
            if distance[before] == FAR:
                distance[before] = distance[state] + 1
                queue.append(before)
    return distance


def demo() -> None:
    """小机器的表；后半截共用省下的状态；太大的与不可能的。"""
    a, b, c, d = (literal(letter) for letter in "abcd")
    # 手工搭一棵：正则表达式的解析器（regex_syntax.py）给出的就是这样的树
    machine = ByteAutomaton(Either((Chain((a, Repeat(b, 0, None), c)), d)), "ab*c|d")
    print("1. ab*c|d 的表：")
    # 一行一个状态，一列一个字节；只印用得上的四列。
    # 0 号是死状态，不印；「·」就是去 0 号
    for state in range(1, len(machine.table)):
        row = " ".join(f"{int(machine.table[state, ord(x)]) or '·'}" for x in "abcd")
        mark = "✓" if machine.accepting[state] else " "
        print(f"   {state} {mark}  {row}　至少还差 {machine.distance[state]} 个字节")
    for text in ("abbbc", "d", "ab", "dd"):
        print(f"   {text:6} {'合格' if machine.matches(text.encode()) else '不合格'}")
    assert [machine.matches(x) for x in (b"abbbc", b"d", b"ab", b"dd")] == [1, 1, 0, 0]

    shared_ends()
    print("3. 太大的：")
    # 子集构造最坏的情形：
    # 要记住「最近 21 个字母里哪些位置是 a」，没有 2²¹ 个状态记不下
    x = Either((a, b))
    try:
        ByteAutomaton(Chain((Repeat(x, 0, None), a, Repeat(x, 20, 20))), "(a|b)*a(a|b){20}")
        raise AssertionError("two million states were accepted")
    except ValueError as error:
        print(f"   {error}")


def shared_ends() -> None:
    """后半截相同的路合成一条：一百个单词的机器，比字母的总数小。"""
    # 八个首字母、五个元音，拼出四十个词。
    # 都以 ing 结尾：末三个字母只搭一遍
    words = [f"{first}{second}ing" for first in "bdkprstw" for second in "aeiou"]
    machine = ByteAutomaton(Either(tuple(map(literal, words))), "words")
    letters = sum(map(len, words))
    print(
        f"2. {len(words)} 个以 ing 结尾的词，共 {letters} 个字母：{len(machine.table) - 1} 个状态"
    )
    assert len(machine.table) - 1 < letters / 4
    for word in words:
        assert machine.matches(word.encode())
        # 多一个、少一个字母都不是
        assert not machine.matches(word.encode() + b"s")
        assert not machine.matches(word.encode()[:-1])


if __name__ == "__main__":
    run_demo(demo)
