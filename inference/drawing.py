r"""有了概率，怎样抽出一个词元？而且：同样的种子，单独写与成批写，抽到的还得一样。

计算机只会给 [0, 1) 上均匀的随机数 u。把概率首尾相接铺满 [0, 1)，看 u 落在谁的地盘上，
就抽到谁。这叫逆变换抽样（inverse transform sampling）：

$$F_i = \sum_{j \le i} p_j \qquad \text{抽到} = \min\{\, i : F_i > u \,\}$$

    p     0.50          0.30     0     0.20
    0 ├────白────┼───日───┼依┼─山──┤ 1         「依」的概率是 0，没有地盘，永远抽不到
                        ▲
                     u = 0.62 → 日

每行每步只用掉一个 u，由（种子，第几份，第几个词元）直接算出（见 random_stream.py）。由此：

  · 成批不改变结果：别的行抽不抽、抽了几次，都动不到这一行的随机数；
  · 流式与否、有没有缓存、一步写几个，都一样；换一台机器，也是同样的数列；
  · 共用一个随机源（torch.multinomial 的默认做法）就没有这些保证，多一行全乱。

保证的是随机数相同。分数本身还带着浮点舍入：批的大小不同，加法的次序可能不同，末位会差一点；
只有当 u 恰好落在两块地盘的边界上（约百万分之一的机会）时，才会抽到邻居。

概率与累加都用 float64：词表有几万个词元时，float32 累加的误差会超过稀有词元的地盘。

文献：Devroye 1986《Non-Uniform Random Variate Generation》第 II 章。

改哪里：换一种抽法（如 Gumbel-max）→ draw；换种子的规则 → random_stream.py。
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from foundation.demonstration import run_demo
from inference.random_stream import RowRandom

__all__ = ["check_scores", "draw", "drawing_device"]


def drawing_device(device: torch.device) -> torch.device:
    """在哪里抽：就在分数所在的地方；苹果的 GPU 没有 float64，回到 CPU 上。"""
    return torch.device("cpu") if device.type == "mps" else device


def draw(
    logits: Tensor, uniforms: Sequence[float] | Tensor, temperature: Tensor | float = 1.0
) -> Tensor:
    """按 softmax(logits / τ) 给每行抽一个：第 b 行用掉 uniforms[b]。

    公式：min{ i : F_i > u·F_V }，F 是概率的累加
    形状：logits (B, V)、uniforms (B,)、temperature 一个数或 (B, 1) → (B,) int64
    约定：概率为 0 的（分数 −∞）永远不会抽到；全行 −∞ 请先用 check_scores 拒绝
    """
    # ① float64 里算；苹果的 GPU 没有 float64，就回到 CPU 上抽
    device = drawing_device(logits.device)
    wide = logits.to(device).double()
    scaled = (wide - wide.amax(dim=-1, keepdim=True)) / temperature
    weights = scaled.exp()  # (B, V)，不必除以总和
    total = weights.cumsum(dim=-1)  # (B, V)
    u = torch.as_tensor(uniforms, dtype=torch.float64, device=device).view(-1, 1)  # (B, 1)
    # ② 最大的权重是 1，所以 F_V ≥ 1；u 至多是 1 − 2⁻⁵³，u·F_V 舍入之后仍小于 F_V：
    #    总有一个超过它，不必为「恰好落在最右端」另写一段
    if device.type == "cpu":
        # ③ 一项一项地加，只增不减：折半就找得到第一个超过的；没有地盘的与前一个相等，轮不到它
        place = torch.searchsorted(total, u * total[:, -1:], right=True)  # (B, 1)
        return place[:, 0].to(logits.device)
    # ④ GPU 上分块并行地加，相邻两项可能因舍入而微微倒退；
    #    把没有地盘的一律记 0，再从头看谁先超过：argmax 遇到并列取最前面的
    total = total.masked_fill(weights == 0, 0.0)
    return (total > u * total.amax(dim=-1, keepdim=True)).int().argmax(dim=-1)


def check_scores(logits: Tensor) -> None:
    """拒绝没法用的分数：NaN、+∞、全行 −∞（一个能选的都没有）。

    形状：logits (B, V)
    错误：ValueError，说清是哪一行、多半是为什么
    """
    # 看最大值就够了：NaN 与 +∞ 都会传到它那里，全行 −∞ 时它也是 −∞。一次归约，一次等待
    largest = logits.amax(dim=-1)  # (B,)
    if bool(largest.isfinite().all()):
        return
    row = int((~largest.isfinite()).int().argmax())
    if float(largest[row]) == -math.inf:
        raise ValueError(
            f"row {row}: every token is forbidden (all scores are -inf); relax logit_bias"
        )
    raise ValueError(
        f"row {row}: the model's scores hold {float(largest[row])}; its weights are damaged, "
        "or fp16 overflowed (use fp32 or bf16)"
    )


def demo() -> None:
    """看 u 落在谁的地盘；抽许多次，频率接近概率；多一行也不影响别的行。"""
    words = ["白", "日", "依", "山"]
    probabilities = torch.tensor([[0.5, 0.3, 0.0, 0.2]])
    logits = probabilities.log()  # log 0 = −∞
    shown = zip(words, probabilities[0].tolist(), strict=True)
    print("1. 概率 " + "  ".join(f"{word} {p:.1f}" for word, p in shown))
    for u in (0.0, 0.49, 0.62, 0.8, 0.999999):
        print(f"   u = {u:<8} → {words[int(draw(logits, [u]))]}")
    assert words[int(draw(logits, [0.62]))] == "日"

    # 一次抽一万行：频率与概率之差应当在 √(p(1−p)/n) 的几倍以内
    n, source = 10_000, RowRandom(seed=0)
    drawn = draw(logits.expand(n, 4), [source.at(t) for t in range(n)])
    frequency = torch.bincount(drawn, minlength=4) / n
    spread = (probabilities[0] * (1 - probabilities[0]) / n).sqrt()
    print(f"\n2. 抽 {n:,} 次的频率 " + "  ".join(f"{value:.4f}" for value in frequency.tolist()))
    print("   允许的误差（4σ）  " + "  ".join(f"{value:.4f}" for value in (4 * spread).tolist()))
    assert bool(((frequency - probabilities[0]).abs() <= 4 * spread).all())
    assert frequency[2] == 0  # 没有地盘的，一次也没有

    print("\n3. 第一行抽 12 次：单独抽，与旁边多一行时抽")
    alone, beside = RowRandom(7), (RowRandom(7), RowRandom(8))
    first = [int(draw(logits, [alone.at(t)])) for t in range(12)]
    pairs = [draw(logits.expand(2, 4), [one.at(t) for one in beside]) for t in range(12)]
    second = [int(pair[0]) for pair in pairs]
    print("   " + "".join(words[i] for i in first) + "\n   " + "".join(words[i] for i in second))
    assert first == second

    # 对照：共用一个随机源，多一行就全变了
    torch.manual_seed(7)
    lone = [int(torch.multinomial(probabilities, 1)) for _ in range(12)]
    torch.manual_seed(7)
    both = [int(torch.multinomial(probabilities.expand(2, 4), 1)[0]) for _ in range(12)]
    print("   共用一个随机源（torch.multinomial）：")
    print("   " + "".join(words[i] for i in lone) + "\n   " + "".join(words[i] for i in both))
    assert lone != both


if __name__ == "__main__":
    run_demo(demo)
