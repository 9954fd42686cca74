r"""编号怎样变成向量？模型又怎样知道词元的先后？——词嵌入与位置编码。

注意力把输入当作集合：打乱词元的次序，输出只是跟着打乱，「猫追狗」与「狗追猫」没有分别。
所以要把位置写进向量：

$$x_t = E[\mathrm{id}_t] + P[t]$$

    编号 (B, T) ──查表 E (V, D)──► (B, T, D) ─┐
                                              ├─ 相加 ─► x (B, T, D)
    位置 (T,)   ──查表 P (L, D)──► (T, D) ────┘

P 有两种来法：
  学习的（learned，GPT-2）      P 是参数，从数据里学；只认得 L 以内的位置
  正弦的（sinusoidal，原版）    P 由公式给出，没有参数，想要多长有多长：

$$P_{t,\,2i} = \sin(t\,\omega_i), \quad P_{t,\,2i+1} = \cos(t\,\omega_i), \quad
  \omega_i = 10000^{-2i/D}$$

正弦像一排快慢不同的钟：秒针分得清相邻的两个位置，时针分得清句首与句尾；相隔 k 步，每个钟都转过
固定的角度，所以「往前看 k 个」是同一个线性变换，与身在何处无关。
为什么是相加而不是拼接：拼接要占掉一部分维数；相加时，高维里随机的两组方向几乎垂直，
后面的 W_Q、W_K 自己学得会把「是什么」与「在哪里」分开读。

第三种办法不加在 x 上，而是转动 q 和 k，只留下距离：旋转位置（RoPE），见 rotary.py。

论文：Vaswani 等 2017《Attention Is All You Need》(arXiv:1706.03762) 3.4、3.5 节；
     Press 与 Wolf 2017 输入输出嵌入共用一张表 (arXiv:1608.05859)

改哪里：
  · 想换一种位置编码——写一个 forward(positions) → (…, D) 的模块，交给 GPT 相加。
  · 想让最慢的钟更慢——SinusoidalPositions 的 base。
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundation.checks import check_float, check_int
from foundation.demonstration import new_figure, run_demo, save_figure

__all__ = ["LearnedPositions", "SinusoidalPositions", "TokenEmbedding", "sinusoidal_table"]


class TokenEmbedding(nn.Module):
    """把编号换成向量：取出 E 的第 id 行。

    公式：x_t = E[id_t] = onehot(id_t)·E；查表就是稀疏到极点的矩阵乘法
    形状：ids (B, T) 整数 → (B, T, D)
    类型：与 weight 同 dtype
    约定：编号越界由 GPT 在入口查一次，这里不重复；weight 常与输出层共用
    """

    def __init__(self, vocab_size: int, dim: int) -> None:
        super().__init__()
        shape = (check_int("vocab_size", vocab_size, 1), check_int("dim", dim, 1))
        self.weight = nn.Parameter(torch.empty(shape))  # (V, D)
        # 标准差取小：E 与输出层共用时，太大会让刚开始的打分悬殊，损失远高于瞎猜的 ln V
        nn.init.normal_(self.weight, std=0.02)

    @property
    def dtype(self) -> torch.dtype:
        """查出来的向量的类型；整个模型的类型由它定。"""
        return self.weight.dtype

    def forward(self, ids: Tensor) -> Tensor:
        """查表；反向时只有出现过的行得到梯度，从没出现过的词永远停在初始值。"""
        return F.embedding(ids, self.weight)


class LearnedPositions(nn.Module):
    """学习的位置编码：每个位置一行参数。

    公式：P[t] = W_t
    形状：positions (T,) 或 (B, T) → (T, D) 或 (B, T, D)
    错误：位置不在 0 … L − 1 时抛 ValueError：没学过的位置没有向量
    """

    def __init__(self, max_seq_len: int, dim: int) -> None:
        super().__init__()
        shape = (check_int("max_seq_len", max_seq_len, 1), check_int("dim", dim, 1))
        self.weight = nn.Parameter(torch.empty(shape))  # (L, D)
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, positions: Tensor) -> Tensor:
        """查表；(T,) 的结果会自动广播到一批里的每一句。"""
        return look_up(positions, self.weight)


class SinusoidalPositions(nn.Module):
    """正弦位置编码：没有参数，也不存进权重文件。

    公式：P[t, 2i] = sin(t·ω_i)，P[t, 2i+1] = cos(t·ω_i)，ω_i = base^(−2i/D)
    形状：positions (T,) 或 (B, T) → (T, D) 或 (B, T, D)
    类型：表跟着模型的 dtype 与 device 走，与词嵌入相加不会改变类型
    错误：位置不在 0 … L − 1 时抛 ValueError
    """

    table: Tensor

    def __init__(self, max_seq_len: int, dim: int, *, base: float = 10000.0) -> None:
        super().__init__()
        self.max_seq_len = check_int("max_seq_len", max_seq_len, 1)
        self.dim = check_int("dim", dim, 1)
        self.base = check_float("base", base, exclusive_minimum=1.0)
        # 空张量替我们记下此刻默认的 dtype 与 device（可能是 meta），再照它填表
        self.register_buffer("table", torch.empty(0), persistent=False)
        self._fill(self.table.device)

    def _fill(self, device: torch.device) -> None:
        """照公式填表；meta 设备上只有形状，没有数。"""
        if device.type == "meta":
            self.table = self.table.new_empty((self.max_seq_len, self.dim), device="meta")
        else:
            exact = sinusoidal_table(self.max_seq_len, self.dim, self.base)
            self.table = exact.to(device=device, dtype=self.table.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SinusoidalPositions:
        """.to()、.half()、.to_empty() 都走这里；to_empty 之后内存里是垃圾，所以总是照公式重填。"""
        super()._apply(fn, recurse)
        self._fill(self.table.device)
        return self

    def forward(self, positions: Tensor) -> Tensor:
        """查表；权重若是直接换进来的，表可能还停在 meta 设备上，此时补填。"""
        # 一次比较的代价，换来在哪里用就在哪里有
        if self.table.device != positions.device:
            self._fill(positions.device)
        return look_up(positions, self.table)


def sinusoidal_table(max_seq_len: int, dim: int, base: float = 10000.0) -> Tensor:
    """整张正弦位置表：→ (L, D) float32。

    角度在 CPU 的 float64 里算：t 很大时，float32 的角度误差看得见，各家 GPU 也略有出入
    """
    exponents = torch.arange(0, dim, 2, dtype=torch.float64, device="cpu") / dim  # (⌈D/2⌉,)
    frequencies = torch.exp(-math.log(base) * exponents)
    positions = torch.arange(max_seq_len, dtype=torch.float64, device="cpu")
    angles = torch.outer(positions, frequencies)  # (L, ⌈D/2⌉)
    table = torch.empty(max_seq_len, dim, dtype=torch.float64, device="cpu")
    # 偶数列正弦、奇数列余弦，两两成对；D 为奇数时余弦少一列
    table[:, 0::2] = angles.sin()
    table[:, 1::2] = angles[:, : dim // 2].cos()
    return table.float()


def look_up(positions: Tensor, table: Tensor) -> Tensor:
    """查位置表；平时不检查，出了错再把错误说清楚。"""
    try:
        return F.embedding(positions, table)
    except IndexError:
        low, high = int(positions.min()), int(positions.max())
        raise ValueError(
            f"positions must be >= 0 and < max_seq_len {len(table)}, got {low} to {high}"
        ) from None


def lookup_is_a_product() -> None:
    """五个词、三维：取出第 2 行，与用独热（one-hot）向量去乘，是同一件事。

    所以嵌入就是一层没有偏置的线性层，只是输入太稀疏，查表比乘法快得多
    """
    embedding = TokenEmbedding(5, 3)
    ids = torch.tensor([[2, 0, 2]])
    product = F.one_hot(ids, 5).float() @ embedding.weight  # (1, 3, D)
    print("① 编号 [2, 0, 2] → 三个向量；相同的编号得到相同的向量：")
    for row in embedding(ids)[0].tolist():
        print("   " + "  ".join(f"{value:+.4f}" for value in row))
    assert torch.equal(embedding(ids), product)


def attention_is_blind_to_order() -> None:
    """最小的注意力 softmax(xxᵀ)·x：打乱输入，看输出是否只是跟着打乱。

    比法：先打乱再算，与先算再打乱；两者相等，就是看不见次序
    """

    def attend(x: Tensor) -> Tensor:
        return torch.softmax(x @ x.transpose(0, 1), dim=-1) @ x

    words, order = torch.randn(6, 16), torch.tensor([3, 1, 5, 0, 4, 2])
    positions = sinusoidal_table(6, 16)
    without = (attend(words[order]) - attend(words)[order]).abs().max()
    added = (attend(words[order] + positions) - attend(words + positions)[order]).abs().max()
    print("② 打乱六个词的次序，除了跟着打乱，输出还变了多少：")
    print(f"   没有位置 {float(without):.6f}     加上位置 {float(added):.6f}")
    assert without < 1e-5 < 0.1 < added


def sinusoids_know_the_distance() -> None:
    """每个钟给出一对 (sin, cos)，两个位置的内积只剩角度差的余弦。

    公式：P[t]·P[t+k] = Σ_i cos(k·ω_i)，t 消去了
    """
    table = sinusoidal_table(512, 64)
    print("③ 正弦位置的内积只认距离 k：")
    for k in (0, 1, 8, 64):
        products = [float(table[t] @ table[t + k]) for t in (0, 100, 400)]
        print(f"   k = {k:2d}，t = 0、100、400：" + "  ".join(f"{p:.3f}" for p in products))
        assert max(products) - min(products) < 1e-3


def demo() -> None:
    """查表是乘法，注意力看不见次序，正弦认得距离，参数各要多少。"""
    lookup_is_a_product()
    attention_is_blind_to_order()
    sinusoids_know_the_distance()
    # 两种位置编码要存多少数：正弦的一个也不用存
    for module in (LearnedPositions(1024, 768), SinusoidalPositions(1024, 768)):
        size = sum(parameter.numel() for parameter in module.parameters())
        print(f"④ {type(module).__name__:20s} 参数 {size}，存进文件 {list(module.state_dict())}")
    # 超出范围的位置，错误说出给了什么、允许什么
    try:
        LearnedPositions(8, 4)(torch.arange(9))
    except ValueError as error:
        print(f"⑤ 第 9 个词元：{error}")


def plot(path: Path) -> None:
    """左边是整张表，右边是内积随距离的变化。

    左图越往右钟越慢：最左几列几步一变，最右几列整张图里都没走多远；右图近处像，远处不像
    """
    table = sinusoidal_table(128, 64)
    figure, (left, right) = new_figure(1, 2, size=(11.0, 4.4))
    image = left.imshow(table, aspect="auto", cmap="RdBu")
    left.set(title="sinusoidal positions", xlabel="dimension", ylabel="position t")
    figure.colorbar(image, ax=left)
    # 以正中间的位置为准，向两边看：左右对称，所以它只认远近，不认方向
    right.plot(torch.arange(-64, 64), table @ table[64])
    right.set(title="P[64] · P[64 + k]", xlabel="distance k", ylabel="inner product")
    save_figure(figure, path)


if __name__ == "__main__":
    run_demo(demo, plot)
