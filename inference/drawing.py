r"""有了概率，怎样抽出一个词元？而且：同样的种子，单独写、成批写、猜着写，抽到的还得一样。

让每个词元都起跑，各跑各的：概率大的跑得快，随机的运气人人一份。谁先到就抽谁：

$$\text{抽到} = \arg\min_v \frac{E_v}{p_v}, \qquad E_v = -\ln u_v, \quad u_v \sim U(0, 1)$$

    p     白 0.50   日 0.30   依 0      山 0.20
    E     0.92      0.35      0.10      1.10          每个词元自己的运气
    E/p   1.84      1.17      ∞         5.50          「日」先到；「依」的概率是 0，永远跑不到

为什么正好按概率？E_v/p_v 服从速率为 p_v 的指数分布，几个指数分布里，第 v 个最小的概率就是
p_v / Σp。取对数就是 Gumbel-max：argmax (z_v + G_v)，G = −ln E。温度趋于 0 时只看分数，就是贪心。

另一种抽法是把概率首尾相接铺满 [0, 1)，看一个 u 落在谁的地盘上（逆变换）。它只要一个随机数，
便宜；这里却要每个词元一个，换来的是**稳**：p 变一点，抽到的多半不变。地盘一个挨着一个，前面的
宽了一点，后面的就全都挪了位；赛跑则各跑各的，别人快慢不影响我。于是两个相近的分布用同样的运气，

$$P(\text{抽到同一个}) \ge \frac{1 - d}{1 + d}, \qquad d = \tfrac12 \sum_v |p_v - q_v|$$

小模型猜大模型要抽谁，靠的就是它（见 speculative.py）；演示里把两种抽法并排算给你看。

运气 u_v 由（种子，第几份，第几个词元，编号 v）直接算出（见 random_stream.py）。由此：

  · 成批不改变结果：别的行抽不抽、抽了几次，都动不到这一行；
  · 流式与否、有没有缓存、一步写几个，都一样；换一台机器，也是同样的数；
  · 共用一个随机源（torch.multinomial 的默认做法）就没有这些保证，多一行全乱。

保证的是运气相同。分数本身还带着浮点舍入：批的大小不同，加法的次序可能不同，末位会差一点；
只有当前两名几乎同时到（约百万分之一的机会）时，才会抽到另一个。

概率与运气都用 float64：词表有几万个词元时，float32 分辨不出稀有词元之间的先后。

论文：Maddison 等 2014 (arXiv:1411.0030) Gumbel-max；Daliri 等 2024 (arXiv:2408.07978) 上面的下界。

改哪里：换一种抽法 → draw；运气从哪里来 → random_stream.py。
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from foundation.demonstration import run_demo
from inference.random_stream import RowRandom, uniforms

__all__ = ["check_scores", "draw", "drawing_device", "laid_out"]

WIDE = 8_192  # 词表这么大时一行一行地算：一行的中间结果装得进处理器的缓存，几行一起就装不下


def drawing_device(device: torch.device) -> torch.device:
    """在哪里抽：就在分数所在的地方；苹果的 GPU 没有 float64，回到 CPU 上。"""
    return torch.device("cpu") if device.type == "mps" else device


def draw(
    logits: Tensor,
    keys: Sequence[int] | Tensor,
    temperature: Tensor | float = 1.0,
    ids: Tensor | None = None,
) -> Tensor:
    """按 softmax(logits / τ) 给每行抽一个：第 b 行的运气由 keys[b] 决定。

    公式：argmax_v e^{(z_v − max z)/τ} / E_v，E_v = −ln u_v
    形状：logits (B, n)、keys B 个、temperature 一个数或 (B, 1) → (B,) int64，是 0 … n − 1
    ids：(B, n)，第几列是哪个词元；运气随编号走，所以只看前几名与看整个词表，用的是同样的数
    约定：概率为 0 的（分数 −∞）永远不会抽到；全行 −∞ 请先用 check_scores 拒绝
    """
    # 整数在各种设备上算得一样；float64 的对数只差末位，除非前两名几乎同时到，否则看不出来
    device = drawing_device(logits.device)
    n_rows, n = logits.shape
    luck = torch.as_tensor(keys, dtype=torch.long, device=device).view(-1, 1)  # (B, 1)
    # ① 大词表在 CPU 上一行一行地抽；结果与一起抽逐位相同。
    #    几万个词元、十几行时，一起抽要慢好几倍：每个中间结果都要写回内存再读出来
    if n > WIDE and n_rows > 1 and device.type == "cpu":
        column = torch.as_tensor(temperature).expand(n_rows, 1)
        rows = (slice(row, row + 1) for row in range(n_rows))
        each = [draw(logits[r], luck[r], column[r], None if ids is None else ids[r]) for r in rows]
        return torch.cat(each)
    tokens = torch.arange(n, device=device) if ids is None else ids.to(device)
    # ② 权重：最大的是 1，不必除以总和；都除以同一个数，先后不变
    wide = logits.to(device).double()
    weights = ((wide - wide.amax(dim=-1, keepdim=True)) / temperature).exp_()  # (B, n)
    # ③ 运气：ln u 是 −E，所以最快的那个，w / ln u 最负
    times = weights.div_(uniforms(luck, tokens).log_())  # (B, n)
    return times.min(dim=-1).indices.to(logits.device)


def laid_out(logits: Tensor, u: Sequence[float] | Tensor) -> Tensor:
    """另一种抽法：地盘首尾相接，u 落在谁那里就是谁。只为对照：引擎里用的是 draw。

    公式：min{ i : F_i > u·F_V }，F 是概率的累加
    形状：logits (B, V)、u (B,)，每个在 [0, 1) → (B,) int64
    """
    # ① 累加在 float64 里：词表有几万个词元时，float32 的误差会超过稀有词元的地盘
    wide = logits.double()
    total = (wide - wide.amax(dim=-1, keepdim=True)).exp().cumsum(dim=-1)  # (B, V)
    # ② u 乘以总和而不是除：F_V ≥ 1，u 小于 1，舍入之后仍小于 F_V，总有一个超过它
    point = torch.as_tensor(u, dtype=torch.float64).view(-1, 1) * total[:, -1:]  # (B, 1)
    # ③ 用 > 而不是 ≥：概率为 0 的与前一个相等，没有地盘，轮不到它
    return torch.searchsorted(total, point, right=True)[:, 0]


def check_scores(logits: Tensor) -> None:
    """拒绝没法用的分数：NaN、+∞、全行 −∞（一个能选的都没有）。

    形状：logits (B, V)
    错误：ValueError，说清是哪一行、多半是为什么
    """
    # 看最大值就够了：NaN 与 +∞ 都会传到它那里，全行 −∞ 时它也是 −∞。一次归约，一次等待
    largest = logits.amax(dim=-1).tolist()  # B 个
    row = next((row for row, most in enumerate(largest) if not math.isfinite(most)), None)
    if row is None:
        return
    if largest[row] == -math.inf:
        raise ValueError(
            f"row {row}: every token is forbidden (all scores are -inf); relax logit_bias"
        )
    raise ValueError(
        f"row {row}: the model's scores hold {largest[row]}; its weights are damaged, "
        "or fp16 overflowed (use fp32 or bf16)"
    )


def demo() -> None:
    """看谁先到；抽许多次，频率接近概率；多一行也不影响别的行；两个相近的分布抽到同一个。"""
    words = ["白", "日", "依", "山"]
    probabilities = torch.tensor([[0.5, 0.3, 0.0, 0.2]])
    logits, source = probabilities.log(), RowRandom(seed=0)  # log 0 = −∞
    shown = zip(words, probabilities[0].tolist(), strict=True)
    print("1. 概率 " + "  ".join(f"{word} {p:.1f}" for word, p in shown) + "；各自跑了多久：")
    for t in range(3):
        luck = -uniforms(torch.tensor([[source.at(t)]]), torch.arange(4)).log()[0]
        times = luck / probabilities[0]
        first = int(draw(logits, [source.at(t)]))
        row = "  ".join(f"{word} {x:5.2f}" for word, x in zip(words, times.tolist(), strict=True))
        print(f"   第 {t} 步　{row}　→ {words[first]}")
        assert first == int(times.argmin())

    # 一次抽一万行：频率与概率之差应当在 √(p(1−p)/n) 的几倍以内
    n = 10_000
    drawn = draw(logits.expand(n, 4), [source.at(t) for t in range(n)])
    frequency = torch.bincount(drawn, minlength=4) / n
    spread = (probabilities[0] * (1 - probabilities[0]) / n).sqrt()
    print(f"\n2. 抽 {n:,} 次的频率 " + "  ".join(f"{value:.4f}" for value in frequency.tolist()))
    print("   允许的误差（4σ）  " + "  ".join(f"{value:.4f}" for value in (4 * spread).tolist()))
    assert bool(((frequency - probabilities[0]).abs() <= 4 * spread).all())
    assert frequency[2] == 0  # 概率为 0 的，一次也没有

    print("\n3. 第一行抽 12 次：单独抽，与旁边多一行时抽")
    alone, beside = RowRandom(7), (RowRandom(7), RowRandom(8))
    first_row = [int(draw(logits, [alone.at(t)])) for t in range(12)]
    pairs = [draw(logits.expand(2, 4), [one.at(t) for one in beside]) for t in range(12)]
    second = [int(pair[0]) for pair in pairs]
    print(
        "   " + "".join(words[i] for i in first_row) + "\n   " + "".join(words[i] for i in second)
    )
    assert first_row == second

    # 对照：共用一个随机源，多一行就全变了
    torch.manual_seed(7)
    lone = [int(torch.multinomial(probabilities, 1)) for _ in range(12)]
    torch.manual_seed(7)
    both = [int(torch.multinomial(probabilities.expand(2, 4), 1)[0]) for _ in range(12)]
    print("   共用一个随机源（torch.multinomial）：")
    print("   " + "".join(words[i] for i in lone) + "\n   " + "".join(words[i] for i in both))
    assert lone != both
    two_ways()


def two_ways() -> None:
    """p 变一点，还抽到同一个吗？赛跑，与首尾相接铺地盘，各试四千次。"""
    n, source = 4_000, RowRandom(seed=1)
    p = torch.rand(50, dtype=torch.float64).pow(3)
    q = p * torch.rand(50, dtype=torch.float64).add(0.5)  # 每个都变一点
    p, q = p / p.sum(), q / q.sum()
    distance = float((p - q).abs().sum() / 2)
    keys = [source.at(t) for t in range(n)]
    race = [draw(x.log().expand(n, -1), keys) for x in (p, q)]
    # 两边各变一点：总和也变，所以各自归一。
    # 铺地盘：一个 u，落在谁那里就是谁
    u = torch.tensor(keys, dtype=torch.float64) * 2.0**-64 + 0.5
    laid = [laid_out(x.log().expand(n, -1), u) for x in (p, q)]
    shares = [float((a == b).double().mean()) for a, b in (race, laid)]
    bound = (1 - distance) / (1 + distance)
    print(f"\n4. 五十个词，两个分布相差 d = {distance:.3f}；用同样的运气，抽到同一个的机会：")
    print(f"   赛跑 {shares[0]:.3f}（不低于 {bound:.3f}，谁也高不过 {1 - distance:.3f}）", end="")
    print(f"；铺地盘 {shares[1]:.3f}")
    assert shares[1] < bound - 0.02 < shares[0] < 1 - distance + 0.03


if __name__ == "__main__":
    run_demo(demo)
