r"""编号怎样变成向量？模型又怎样知道词元的先后？——词嵌入与位置编码。

注意力把输入当作集合：打乱词元的次序，输出只是跟着打乱。所以必须把位置写进向量：

$$x_t = E[\mathrm{id}_t] + P[t]$$

    编号 (B, T) ──查表 E (V, D)──► (B, T, D) ─┐
                                              ├─ 相加 ─► x (B, T, D)
    位置 (T,)   ──查表 P (L, D)──► (T, D) ────┘

P 有两种来法：
  · 学习的（learned，GPT-2）：P 是参数，只认得 L 以内的位置；
  · 正弦的（sinusoidal，原版 Transformer）：P 由公式给出，没有参数：
    $P_{t,2i} = \sin(t\,/\,10000^{2i/D})$，$P_{t,2i+1} = \cos(t\,/\,10000^{2i/D})$

旋转位置（RoPE）不加在 x 上，而是转动 q 和 k，见 rotary.py。

论文：Vaswani 等 2017《Attention Is All You Need》(arXiv:1706.03762)，3.4 与 3.5 节

改哪里：
  · 想换一种位置编码——写一个 forward(positions) → (…, D) 的模块，交给 GPT 相加。
  · 想让波长更长——改 SinusoidalPositions 的 base。
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundation.checks import check_int
from foundation.demonstration import run_demo

__all__ = ["LearnedPositions", "SinusoidalPositions", "TokenEmbedding", "sinusoidal_table"]


class TokenEmbedding(nn.Module):
    """把编号换成向量：取出 E 的第 id 行。

    公式：x_t = E[id_t] = onehot(id_t)·E
    形状：ids (B, T) int64 → (B, T, D)
    类型：与 weight 同 dtype
    错误：编号越界由 GPT 在入口检查一次，这里不再重复
    """

    def __init__(self, vocab_size: int, dim: int) -> None:
        super().__init__()
        self.vocab_size = check_int("vocab_size", vocab_size, 1)
        self.dim = check_int("dim", dim, 1)
        self.weight = nn.Parameter(torch.empty(vocab_size, dim))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        """查表：(B, T) → (B, T, D)。"""
        return F.embedding(ids, self.weight)

    def extra_repr(self) -> str:
        """让 print(model) 说出大小。"""
        return f"{self.vocab_size}, {self.dim}"


class LearnedPositions(nn.Module):
    """学习的位置编码：每个位置一行参数。

    公式：P[t] = W_t
    形状：positions (T,) 或 (B, T) → (T, D) 或 (B, T, D)
    类型：与 weight 同 dtype
    """

    def __init__(self, max_seq_len: int, dim: int) -> None:
        super().__init__()
        self.max_seq_len = check_int("max_seq_len", max_seq_len, 1)
        self.dim = check_int("dim", dim, 1)
        self.weight = nn.Parameter(torch.empty(max_seq_len, dim))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, positions: Tensor) -> Tensor:
        """查表。"""
        return F.embedding(positions, self.weight)

    def extra_repr(self) -> str:
        """让 print(model) 说出大小。"""
        return f"{self.max_seq_len}, {self.dim}"


def sinusoidal_table(max_seq_len: int, dim: int, base: float = 10000.0) -> Tensor:
    """算出整张正弦位置表。

    公式：P[t, 2i] = sin(t·ω_i)，P[t, 2i+1] = cos(t·ω_i)，ω_i = base^(−2i/D)
    形状：→ (L, D) float32
    """
    # 在 float64 里算角度：t 很大时 float32 的角度会差到看得见
    exponents = torch.arange(0, dim, 2, dtype=torch.float64, device="cpu") / dim  # (⌈D/2⌉,)
    frequencies = torch.exp(-math.log(base) * exponents)
    positions = torch.arange(max_seq_len, dtype=torch.float64, device="cpu")
    angles = torch.outer(positions, frequencies)  # (L, ⌈D/2⌉)
    table = torch.empty(max_seq_len, dim, dtype=torch.float64, device="cpu")
    table[:, 0::2] = angles.sin()
    table[:, 1::2] = angles[:, : dim // 2].cos()  # D 为奇数时余弦少一列
    return table.float()


class SinusoidalPositions(nn.Module):
    """正弦位置编码：没有参数，位置 t 与 t+k 之间只差一个固定的旋转。

    形状：positions (T,) 或 (B, T) → (T, D) 或 (B, T, D)
    类型：表跟着模型的 dtype 和 device 走，与词嵌入相加时不改变类型
    """

    table: Tensor

    def __init__(self, max_seq_len: int, dim: int, *, base: float = 10000.0) -> None:
        super().__init__()
        self.max_seq_len = check_int("max_seq_len", max_seq_len, 1)
        self.dim = check_int("dim", dim, 1)
        self.base = base
        table = torch.empty(0, dtype=torch.get_default_dtype())
        self.register_buffer("table", table, persistent=False)
        self._rebuild(table.device)

    def _rebuild(self, device: torch.device) -> None:
        if device.type == "meta":
            self.table = torch.empty(
                self.max_seq_len, self.dim, dtype=self.table.dtype, device="meta"
            )
            return
        table = sinusoidal_table(self.max_seq_len, self.dim, self.base)
        self.table = table.to(device=device, dtype=self.table.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SinusoidalPositions:
        # .to()、.half()、.to_empty() 都走这里：to_empty 留下的是垃圾，所以一律按公式重算
        super()._apply(fn, recurse)
        self._rebuild(self.table.device)
        return self

    def forward(self, positions: Tensor) -> Tensor:
        """查表；权重直接 assign 进来时，表可能还停在 meta 设备上，此时补算。"""
        if self.table.device != positions.device:
            self._rebuild(positions.device)
        return F.embedding(positions, self.table)

    def extra_repr(self) -> str:
        """让 print(model) 说出大小。"""
        return f"{self.max_seq_len}, {self.dim}, base={self.base:g}"


def demo() -> None:
    """演示（稍后补全）。"""


if __name__ == "__main__":
    run_demo(demo)
