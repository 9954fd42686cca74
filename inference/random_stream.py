r"""随机数不排队也能取吗？——由（种子，第几份，第几个词元）直接算出来，所以与谁同批、先后都无关。

普通的随机源是一条长队：每取一个，状态就往前挪一格。第 1000 个要等前 999 个取完，两份文本共用一条
队，谁先谁后都会变。计数式的（counter-based）没有状态，只有一个把号码搅匀的函数：

$$u_t = 2^{-53}\left\lfloor \frac{F_K(\lfloor t/4 \rfloor)_{\,t \bmod 4}}{2^{11}} \right\rfloor
\in [0, 1), \qquad K = \mathrm{SHA256}(\text{种子}, \text{份})$$

    计数器 ⌊t/4⌋  ──▶ ┌──────────────────────────┐ ──▶ 四个 64 位的数
    （256 位）        │ 十轮：乘、取高低位、异或 │      u₄ₖ  u₄ₖ₊₁  u₄ₖ₊₂  u₄ₖ₊₃
    钥匙 K（128 位）─▶│ 每轮钥匙加一个常数       │
                      └──────────────────────────┘

于是第 t 个词元用的数只由（种子，份，t）决定：

  · 批里有谁、谁先写完、排在第几行，都动不到它
  · 一步写一个，还是一步猜对五个（见 speculative.py），用的是同样的数
  · 写到一半停下，改天从第 t 个接着写，也不必重放前面的

F 是 Philox4×64-10：乘法把低位搅到高位，取一个 128 位乘积的高低两半，异或进钥匙，再换个位置；
十轮之后，计数器改动一位，输出平均有一半的位翻转。它不是密码，只求统计上看不出规律，而且便宜：
一次得四个数，Python 的整数天生没有上限，乘完取高位不会溢出。

常见疑问：
    为什么不直接用 SHA256？       也行，慢些；Philox 的统计检验做得更全，GPU 上也都用它
    与 torch.Generator 比呢？     那一个要从头排队，而且只认种子的低 32 位
    53 位够吗？                   float64 恰好有 53 位有效数字，再多也放不下

论文：Salmon 等 2011《Parallel Random Numbers: As Easy as 1, 2, 3》（Philox 与 Threefry）。

改哪里：换一个搅匀的函数 → philox；换种子的规则 → RowRandom；怎样用一个 u 抽词元 → drawing.py。
"""

from __future__ import annotations

import hashlib

from foundation.demonstration import run_demo

__all__ = ["RowRandom", "philox"]

MASK = 2**64 - 1
# 两个乘数是论文里搜出来的：乘过之后，输入的每一位都影响得到尽量多的输出位
MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
# 每轮钥匙各加一个：黄金比例与 √3 − 1 的小数部分，没有规律可循就好
STEPS = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
ROUNDS = 10


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """搅匀：四个 64 位的数 → 四个 64 位的数；钥匙固定时一一对应，所以不会有两个计数器撞在一起。

    与 numpy.random.Philox 逐位相同（它先把计数器加一再搅）
    """
    a, b, c, d = counter
    left, right = key
    for _ in range(ROUNDS):
        # 高半截随每一位输入而变，低半截一一对应：两半都用上，才既搅得匀又不丢信息
        first, second = MULTIPLIERS[0] * a, MULTIPLIERS[1] * c
        a, b, c, d = (
            (second >> 64) ^ b ^ left,
            second & MASK,
            (first >> 64) ^ d ^ right,
            first & MASK,
        )
        # 每轮的钥匙都不同，十轮就不会是同一个函数套十遍
        left, right = (left + STEPS[0]) & MASK, (right + STEPS[1]) & MASK
    return a, b, c, d


class RowRandom:
    """一份文本自己的随机数：第 t 个词元用 at(t)，与别的文本、与取的次序无关。

    同一个种子下，每条提示的第 i 份用的是同一串随机数：提示不同，文本自然不同
    """

    def __init__(self, seed: int, sample: int = 0) -> None:
        # 种子可以是任意大的、负的整数；相邻的种子不该给出相近的数：先用散列搅匀成 128 位的钥匙
        digest = hashlib.sha256(f"{seed},{sample}".encode()).digest()
        self.key = (int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:16], "big"))
        # 一次搅出四个，后三个留着：下一步多半就要
        self._block, self._words = -1, (0, 0, 0, 0)

    def at(self, position: int) -> float:
        """第 position 个词元的 u ∈ [0, 1)；position 从 0 数起，只算新写的。

        例：同样的 position 问多少遍、按什么次序问，答案都一样
        """
        block, place = divmod(position, 4)
        if block != self._block:
            self._block, self._words = block, philox((block, 0, 0, 0), self.key)
        # 留下高 53 位：恰好是 [0, 1) 里等距的 2⁵³ 个数，最大的是 1 − 2⁻⁵³，到不了 1
        return (self._words[place] >> 11) * 2.0**-53


def demo() -> None:
    """随便什么次序取，都一样；改一位，翻一半；均匀吗。"""
    source = RowRandom(seed=7)
    first = [source.at(t) for t in range(6)]
    print("1. 种子 7 的头六个：" + "  ".join(f"{u:.4f}" for u in first))
    shuffled = {t: RowRandom(7).at(t) for t in (5, 0, 3, 1, 4, 2)}
    print("   倒着、跳着取：　　" + "  ".join(f"{shuffled[t]:.4f}" for t in range(6)))
    assert [shuffled[t] for t in range(6)] == first

    print("2. 计数器只改一位，256 位输出里翻了几位：")
    base = philox((0, 0, 0, 0), source.key)
    flips = []
    for bit in (0, 1, 63):
        other = philox((1 << bit, 0, 0, 0), source.key)
        flips.append(sum((x ^ y).bit_count() for x, y in zip(base, other, strict=True)))
        print(f"   第 {bit:2} 位　翻 {flips[-1]} 位")
    # 256 个公平的硬币：一半上下，标准差 8
    assert all(abs(n - 128) < 40 for n in flips)

    n, bins = 20_000, [0] * 10
    for t in range(n):
        bins[int(10 * source.at(t))] += 1
    chi_square = sum((count - n / 10) ** 2 / (n / 10) for count in bins)
    print(f"3. {n:,} 个数落进十格：{bins}")
    print(f"   χ² = {chi_square:.1f}；真正均匀的，千次里有一次超过 27.9")
    assert chi_square < 27.9

    pairs = [(RowRandom(seed).at(0), RowRandom(seed + 1).at(0)) for seed in range(2_000)]
    mean = sum((x - 0.5) * (y - 0.5) for x, y in pairs) / len(pairs) * 12
    print(f"4. 相邻的种子：两千对的相关系数 {mean:+.3f}，无关时约 0 ± 0.02")
    assert abs(mean) < 0.09


if __name__ == "__main__":
    run_demo(demo)
