r"""随机数不排队也能取吗？——由（种子，第几份，第几个词元，词元的编号）直接算出来，与别的都无关。

普通的随机源是一条长队：每取一个，状态就往前挪一格。第 1000 个要等前 999 个取完，两份文本共用一条
队，谁先谁后都会变。计数式的（counter-based）没有状态，只有把号码搅匀的函数。这里用两个，一大一小：

$$k_t = F_K(\lfloor t/4 \rfloor)_{\,t \bmod 4}, \quad K = \mathrm{SHA256}(\text{种子}, \text{份}),
\qquad u_{t,v} = 2^{-52}\big(\lfloor S(k_t, v) / 2^{12} \rfloor + \tfrac12\big)$$

    （种子，份）──SHA256──▶ 钥匙 K        每份文本一把
    第 t 个词元 ──Philox────▶ k_t         每一步一个 64 位的数；一次搅出四步的
    编号 v      ──SplitMix──▶ u_{t,v}     词表里每个词元一个 (0, 1) 之间的数，张量里一次算完

于是第 t 个词元用的那一排数只由（种子，份，t）决定：

  · 批里有谁、谁先写完、排在第几行，都动不到它
  · 一步写一个，还是一步猜对五个（见 speculative.py），用的是同样的数
  · 写到一半停下，改天从第 t 个接着写，也不必重放前面的
  · 只看前 64 名时，只算那 64 个；与算整个词表得到的，各是同一个数

F 是 Philox4×64-10：取 128 位乘积的高低两半，异或进钥匙，再换个位置，十轮；Python 的整数天生没有
上限，乘完取高位不会溢出。S 是 SplitMix64：从 k 起每次加一个常数 γ，第 v 个再搅三下；搅的时候只有
移位、异或、乘法，溢出的高位正好丢掉，所以 torch 的 int64 就能算，各种设备上结果逐位相同。

都不是密码，只求统计上看不出规律，而且便宜。

常见疑问：
    为什么要两个？            Philox 更讲究，算一步一次；SplitMix 快得多，一步要算几万个
    与 torch.Generator 比呢？ 那一个要从头排队，而且只认种子的低 32 位
    为什么加二分之一？        0 的对数是负无穷；加半格，就落在每一格的正中，永远不是 0 也不是 1

论文：Salmon 等 2011《Parallel Random Numbers: As Easy as 1, 2, 3》（Philox）；
     Steele 等 2014《Fast Splittable Pseudorandom Number Generators》（SplitMix）。

改哪里：换一个搅匀的函数 → philox、uniforms；换种子的规则 → RowRandom；怎样用它们抽 → drawing.py。
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from foundation.demonstration import run_demo

__all__ = ["RowRandom", "philox", "uniforms"]

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


def signed(word: int) -> int:
    """64 位的数 → 同样 64 位、带符号的数：torch 的整数都带符号，位是一样的。

    >>> signed(2**64 - 1), signed(5)
    (-1, 5)
    """
    return word - 2**64 if word >= 2**63 else word


class RowRandom:
    """一份文本自己的随机数：第 t 个词元用 at(t)，与别的文本、与取的次序无关。

    同一个种子下，每条提示的第 i 份用的是同一串：提示不同，文本自然不同
    """

    def __init__(self, seed: int, sample: int = 0) -> None:
        # 种子可以是任意大的、负的整数；相邻的种子不该给出相近的数：先用散列搅匀成 128 位的钥匙
        digest = hashlib.sha256(f"{seed},{sample}".encode()).digest()
        self.key = (int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:16], "big"))
        # 一次搅出四个，后三个留着：下一步多半就要
        self._block, self._words = -1, (0, 0, 0, 0)

    def at(self, position: int) -> int:
        """第 position 个词元的 k，64 位带符号；position 从 0 数起，只算新写的。

        例：同样的 position 问多少遍、按什么次序问，答案都一样
        """
        block, place = divmod(position, 4)
        if block != self._block:
            self._block, self._words = block, philox((block, 0, 0, 0), self.key)
        return signed(self._words[place])


# SplitMix64：步长是 2⁶⁴ 除以黄金比例；两个乘数与三个移位是搜出来的
GAMMA, MIX_1, MIX_2 = map(signed, (STEPS[0], 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def uniforms(keys: Tensor, ids: Tensor) -> Tensor:
    """每个词元一个 (0, 1) 之间的数：第 b 行、编号 v 的只由 keys[b] 与 v 决定。

    形状：keys (B, 1) int64，ids (n,) 或 (B, n) 的编号 → (B, n) float64
    """
    # ① 第 v 个状态是 k + (v + 1)·γ，不必从头数到 v；溢出就是对 2⁶⁴ 取余
    x = ids * GAMMA + (keys + GAMMA)  # (B, n)
    # ② 搅三下。torch 的右移会把符号位复制下来，所以要用掩码抹掉；就地做，省得一再申请内存
    x ^= (x >> 30) & (2**34 - 1)
    x *= MIX_1
    x ^= (x >> 27) & (2**37 - 1)
    x *= MIX_2
    x ^= (x >> 31) & (2**33 - 1)
    # ③ 留高 52 位，加半格：float64 装得下，所以最大的也到不了 1
    return ((x >> 12) & (2**52 - 1)).double().add_(0.5).mul_(2.0**-52)


def demo() -> None:
    """随便什么次序取，都一样；改一位，翻一半；均匀吗。"""
    source = RowRandom(seed=7)
    first = [source.at(t) for t in range(4)]
    print("1. 种子 7 的头四步：" + "  ".join(f"{key & MASK:016x}" for key in first))
    shuffled = {t: RowRandom(7).at(t) for t in (2, 0, 3, 1)}
    print("   倒着、跳着取：　　" + "  ".join(f"{shuffled[t] & MASK:016x}" for t in range(4)))
    assert [shuffled[t] for t in range(4)] == first
    # 只要几个词元的，与整个词表的一样
    keys = torch.tensor(first)[:, None]  # (4, 1)
    whole = uniforms(keys, torch.arange(5_000))  # (4, 5000)
    few = torch.tensor([4_999, 7, 42])
    print("   7 号词元各步的 u：" + "  ".join(f"{u:.4f}" for u in whole[:, 7].tolist()))
    assert torch.equal(uniforms(keys, few), whole[:, few])

    print("2. 计数器只改一位，256 位输出里翻了几位：")
    base = philox((0, 0, 0, 0), source.key)
    flips = []
    for bit in (0, 1, 63):
        other = philox((1 << bit, 0, 0, 0), source.key)
        flips.append(sum((x ^ y).bit_count() for x, y in zip(base, other, strict=True)))
        print(f"   第 {bit:2} 位　翻 {flips[-1]} 位")
    # 256 个公平的硬币：一半上下，标准差 8
    assert all(abs(n - 128) < 40 for n in flips)

    # 两个方向都要均匀：同一步的各个词元，同一个词元的各步
    steps = torch.tensor([source.at(t) for t in range(20_000)])[:, None]
    for name, values in (("同一步　", whole.flatten()), ("同一词元", uniforms(steps, few)[:, 0])):
        n = len(values)
        counts = torch.bincount((10 * values).long(), minlength=10)
        chi_square = float(((counts - n / 10) ** 2 / (n / 10)).sum())
        print(f"3. {name}：{n:,} 个落进十格 {counts.tolist()}　χ² = {chi_square:.1f}")
        assert chi_square < 27.9  # 真正均匀的，千次里有一次超过

    pairs = [uniforms(torch.tensor([[RowRandom(s).at(0)]]), few)[0, 0] for s in range(2_000)]
    left, right = torch.stack(pairs[:-1]) - 0.5, torch.stack(pairs[1:]) - 0.5
    mean = float((left * right).mean() * 12)
    print(f"4. 相邻的种子：两千对的相关系数 {mean:+.3f}，无关时约 0 ± 0.02")
    assert abs(mean) < 0.09


if __name__ == "__main__":
    run_demo(demo)
