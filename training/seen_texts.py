r"""一亿篇文档里有没有重复的？——每篇只记 8 个字节的哈希，放进一张自己写的哈希表。

两两比较要 N² 次；把每篇换成一个 64 位的数，「见没见过」就只是查一张表：

    文本 ──规整──▶ SHA-256 的前 64 位 ──▶ 在表里？──是──▶ 重复
          空白合并为一个空格                  └──否──▶ 放进去

内存是难处：Python 的 set 装一亿个整数要 8 GB 以上（每个整数 32 字节，每个格子 16 字节）。
这里的表只有一个 64 位的数组，装到八成才换大一半的，所以每篇占

$$\frac{8}{0.8} = 10\ \text{字节（换大之前）}, \qquad
  \frac{8 \times 1.5}{0.8} = 15\ \text{字节（换大之后）}$$

换表的那一刻新旧两份都在，要 8 + 15 = 23 字节；之后又回到上面的范围。

开放寻址（open addressing）：h 的家在 ⌊h·C / 2⁶⁴⌋，被占了就往后找，直到空格：

    C = 8      0    1    2    3    4    5    6    7   │ 余量 …
              [ ]  [a]  [b]  [c]  [ ]  [d]  [ ]  [ ]  │
    查 b：家是 1，不是 b；往后一格就是              查 e：家是 1，走到 4 是空格 → 没有

家随 h 单调，所以换大表时不必一个个放：排好序，每个放在「自己的家」与「前一个的下一格」之中
靠后的那一格，

$$p_i = \max(\text{home}_i,\ p_{i-1} + 1) = i + \max_{j \le i}(\text{home}_j - j)$$

一次累积最大值就全放好了，没有 Python 循环。

会不会把不同的文档当成重复？N 篇里至少有一对撞上的机会约为 N² / 2⁶⁵：一亿篇时万分之三。

常见疑问：
    为什么不用 Bloom 过滤器？  更省（每篇 2 字节），但会以百分之一的机会丢掉没重复的文档。
    差一个字的近似重复？       这里认不出；那要 MinHash，按短语的集合比。

论文：去重的好处 — Lee et al., *Deduplicating Training Data Makes Language Models Better*,
      arXiv:2107.06499；线性探查 — Knuth, *The Art of Computer Programming* 卷 3 §6.4。

改哪里：什么算相同 → normalized；更省内存 → FULL（更满则更慢）。
"""

from __future__ import annotations

import time
import unicodedata
from array import array
from hashlib import sha256

import numpy as np

from foundation.demonstration import run_demo

__all__ = ["SeenHashes", "content_hash", "normalized"]

# 装到几成满才换大的：越满越省内存，找空格的路也越长。
FULL = 0.8
# 每次换大多少倍。
GROWTH = 1.5
# 换表时一次搬多少个。
BLOCK = 1 << 20
# 表尾的余量：最后几格的家被占时，往后总有地方可去。
SLACK = 256


def normalized(text: str) -> str:
    r"""比较之前先规整：只差空白、换行、组合方式（é 可以是一个码位或两个）的，算作相同。

    大小写、标点不动：它们不同，就是两篇不同的文档。

    >>> normalized("  the cat\r\n\tsat ") == normalized("the cat sat")
    True
    """
    # split() 按任何空白切开，全角空格也算
    return unicodedata.normalize("NFC", " ".join(text.split()))


def content_hash(text: str) -> int:
    """规整后的文本的 64 位哈希，从不为 0（0 在表里表示空格）。"""
    return int.from_bytes(sha256(normalized(text).encode()).digest()[:8], "big") or 1


class SeenHashes:
    """见过哪些 64 位的非零整数；每个占 10 到 15 字节（很少时有个下限）。

    >>> seen = SeenHashes()
    >>> [seen.add(number) for number in (7, 8, 7)]
    [True, True, False]
    >>> len(seen)
    2
    """

    def __init__(self) -> None:
        # 先有一张空表，再换成最小的一张：开头与以后走同一条路
        self._n, self._capacity = 0, 0
        self._table = array("Q")
        self._resize(1024)

    def __len__(self) -> int:
        return self._n

    @property
    def n_bytes(self) -> int:
        """表占多少字节。"""
        return len(self._table) * self._table.itemsize

    def add(self, number: int) -> bool:
        """放进去；没见过返回 True，见过返回 False。"""
        # ① 家：乘法再取高位，与 h 同序；2⁶⁴ 种 h 均匀地分到 C 格
        table, place = self._table, (number * self._capacity) >> 64
        # ② 往后找，直到它自己（见过）或空格（没见过）；表没装满，所以一定会停
        while (found := table[place]) != 0:
            if found == number:
                return False
            place += 1
        # ③ 放下；太满就换大的，只是落到了余量的末格，就添些余量
        table[place] = number
        self._n += 1
        if self._n > FULL * self._capacity:
            self._resize(int(self._capacity * GROWTH))
        elif place >= len(table) - 2:
            table.extend(array("Q", bytes(8 * SLACK)))
        return True

    def _resize(self, capacity: int) -> None:
        """换一张 capacity 格的表，把旧的都搬过去：一次排序，一次累积最大值。"""
        # ① 旧表里的数拿出来排好；旧表随即放掉，才不会三份都在内存里
        # frombuffer 不复制，只是另一种看法；布尔索引才复制
        whole: np.ndarray = np.frombuffer(self._table, dtype=np.uint64)
        old: np.ndarray = whole[whole != 0]  # (n,)
        del whole
        self._table = array("Q")
        old.sort()
        # ② 放进新表；末一个若伸出余量（极少见），余量加倍重来
        slack = SLACK
        while not self._fill(old, capacity, slack):
            slack *= 2

    def _fill(self, numbers: np.ndarray, capacity: int, slack: int) -> bool:
        """把排好序的 numbers 放进一张新表；放不下返回 False。分块做，中间结果才小。"""
        # array 取一格比 numpy 快几倍；整块地写时，借 numpy 的眼睛看同一块内存
        table = array("Q", bytes(8)) * (capacity + slack)
        view = np.frombuffer(table, dtype=np.uint64)
        last = -1  # 上一块末一个放在哪一格
        for first in range(0, len(numbers), BLOCK):
            block = numbers[first : first + BLOCK]
            # 家 = ⌊h·C / 2⁶⁴⌋；numpy 没有 128 位的乘法，拆成高低 32 位分别乘
            high, low, c = block >> np.uint64(32), block & np.uint64(2**32 - 1), np.uint64(capacity)
            homes = ((high * c + ((low * c) >> np.uint64(32))) >> np.uint64(32)).astype(np.int64)
            homes[0] = max(int(homes[0]), last + 1)
            index = np.arange(len(block))
            places = np.maximum.accumulate(homes - index) + index
            last = int(places[-1])
            if last >= len(table) - 2:
                return False
            view[places] = block
        self._table, self._capacity = table, capacity
        return True


def demo() -> None:
    """二十万篇，其中一半重复：数得对不对，占多少内存，比 set 省多少。"""
    print("① 什么算相同")
    for one, other in (("the  cat\n", "the cat"), ("The cat", "the cat"), ("cat", "cat.")):
        same = content_hash(one) == content_hash(other)
        print(f"   {one!r:<12} 与 {other!r:<10} {'相同' if same else '不同'}")
        assert same == (normalized(one) == normalized(other))
    n = 200_000
    numbers = [content_hash(f"document {i % (n // 2)}") for i in range(n)]
    seen = SeenHashes()
    start = time.monotonic()
    new = [seen.add(number) for number in numbers]
    seconds = time.monotonic() - start
    print(f"② {n:,} 篇里不同的 {sum(new):,} 篇；{n / seconds / 1e6:.1f} 百万篇/秒")
    # 前一半都是第一次见，后一半都见过：与它们的来历一致
    assert new == [True] * (n // 2) + [False] * (n // 2)
    print(f"③ 每篇 {seen.n_bytes / len(seen):.1f} 字节；set 光是格子与整数就要 48 字节以上")
    assert 8 <= seen.n_bytes / len(seen) <= 16
    print("④ 越过许多次换表，字节数一直在范围里")
    seen = SeenHashes()
    shares = []
    # 连续的整数乘一个大奇数，散开得像哈希
    for i in range(1, 100_001):
        seen.add(i * 0x9E3779B97F4A7C15 % 2**64)
        if i > 20_000:
            shares.append(seen.n_bytes / i)
    print(f"   最少 {min(shares):.2f}，最多 {max(shares):.2f} 字节")
    assert min(shares) >= 8
    assert max(shares) <= 16


if __name__ == "__main__":
    run_demo(demo)
