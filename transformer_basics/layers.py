r"""注意力之外，一个 Transformer 块还有什么？——归一化、前馈网络、残差。

    Pre-LN（GPT-2 及以后）                     Post-LN（2017 年原版）
    x ──┬─► Norm ─► Attention ─► (+) ─► x'      x ──┬─► Attention ─► (+) ─► Norm ─► x'
        └────────────────────────┘                 └────────────────┘
    x' ─┬─► Norm ─► FeedForward ► (+) ─► y      x' ─┬─► FeedForward ► (+) ─► Norm ─► y
        └────────────────────────┘                 └────────────────┘
    (B, T, D) 进，(B, T, D) 出

$$\text{Pre: } x' = x + f(\mathrm{Norm}(x)) \qquad \text{Post: } x' = \mathrm{Norm}(x + f(x))$$

Pre-LN 的残差路是一条直路：梯度不经过任何归一化就能回到第一层，所以深的模型不用小心翼翼地预热。

论文：Ba 等 2016《Layer Normalization》(arXiv:1607.06450)；Zhang 与 Sennrich 2019《RMSNorm》
     (arXiv:1910.07467)；Hendrycks 与 Gimpel 2016《GELU》(arXiv:1606.08415)；
     Shazeer 2020《GLU Variants》(arXiv:2002.05202)；So 等 2021《Primer》ReLU² (arXiv:2109.08668)；
     Xiong 等 2020 Pre-LN 与 Post-LN (arXiv:2002.04745)

改哪里：
  · 想加一种激活函数——ACTIVATIONS 与 LESSON_ACTIVATIONS 各加一行。
  · 想加一种归一化——写一个 (dim, eps) 的模块，登记到 NORMS。
  · 想改块的接法（并行注意力、三明治归一化）——TransformerBlock.forward。
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundation.checks import check_choice, check_float, check_int
from foundation.demonstration import run_demo
from transformer_basics.kv_cache import KVCache

__all__ = [
    "ACTIVATIONS",
    "LESSON_ACTIVATIONS",
    "NORMS",
    "FeedForward",
    "LayerNorm",
    "RMSNorm",
    "TransformerBlock",
    "gelu",
    "gelu_tanh",
    "layer_norm",
    "relu_squared",
    "rms_norm",
    "silu",
]

Activation = Callable[[Tensor], Tensor]


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """至少 float32：平方和在 bf16 里只剩两三位有效数字。"""
    return torch.promote_types(dtype, torch.float32)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """层归一化（LayerNorm）：每个词元各自减均值、除以标准差。

    公式：y = γ·(x − μ)/√(σ² + ε) + β，μ、σ² 沿最后一维，σ² 除以 D 而不是 D−1
    形状：x (…, D)，γ、β (D,) → (…, D)
    类型：内部 float32，输出与 x 同 dtype
    """
    wide = x.to(wide_dtype(x.dtype))
    mean = wide.mean(dim=-1, keepdim=True)  # (…, 1)
    variance = (wide - mean).square().mean(dim=-1, keepdim=True)  # (…, 1)
    y = (wide - mean) * torch.rsqrt(variance + eps) * weight
    return (y if bias is None else y + bias).to(x.dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """均方根归一化（RMSNorm）：只除以大小，不减均值，也没有偏置。

    公式：y = γ·x/√(mean(x²) + ε)
    形状：x (…, D)，γ (D,) → (…, D)
    类型：内部 float32，输出与 x 同 dtype
    """
    wide = x.to(wide_dtype(x.dtype))
    mean_square = wide.square().mean(dim=-1, keepdim=True)  # (…, 1)
    return (wide * torch.rsqrt(mean_square + eps) * weight).to(x.dtype)


class LayerNorm(nn.Module):
    """带参数的层归一化；implementation 选 "fast"（F.layer_norm）或 "lesson"（上面的写法）。"""

    def __init__(self, dim: int, eps: float = 1e-5, bias: bool = True) -> None:
        super().__init__()
        self.shape = (check_int("dim", dim, 1),)
        self.eps = check_float("norm_eps", eps, exclusive_minimum=0.0)
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim)) if bias else None
        self.implementation = "fast"

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) → (…, D)。"""
        if self.implementation == "fast":
            return F.layer_norm(x, self.shape, self.weight, self.bias, self.eps)
        return layer_norm(x, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        """让 print(model) 说出大小。"""
        return f"{self.shape[0]}, eps={self.eps:g}"


class RMSNorm(nn.Module):
    """带参数的均方根归一化；implementation 的含义同 LayerNorm。"""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.shape = (check_int("dim", dim, 1),)
        self.eps = check_float("norm_eps", eps, exclusive_minimum=0.0)
        self.weight = nn.Parameter(torch.ones(dim))
        self.implementation = "fast"

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) → (…, D)。"""
        if self.implementation == "fast" and x.dtype == self.weight.dtype:
            return F.rms_norm(x, self.shape, self.weight, self.eps)
        return rms_norm(x, self.weight, self.eps)

    def extra_repr(self) -> str:
        """让 print(model) 说出大小。"""
        return f"{self.shape[0]}, eps={self.eps:g}"


NORMS: dict[str, type[LayerNorm] | type[RMSNorm]] = {"layernorm": LayerNorm, "rmsnorm": RMSNorm}


def gelu(x: Tensor) -> Tensor:
    """GELU（精确）：x·Φ(x) = x/2·(1 + erf(x/√2))，Φ 是标准正态的分布函数。"""
    return 0.5 * x * (1.0 + torch.erf(x / math.sqrt(2.0)))


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU（tanh 近似，GPT-2 所用）：x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³)))。"""
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def relu(x: Tensor) -> Tensor:
    """ReLU：max(x, 0)。"""
    return x.clamp(min=0.0)


def relu_squared(x: Tensor) -> Tensor:
    """ReLU²：max(x, 0)²；在零点处导数连续，且一半的输出恰好是零。"""
    return relu(x) ** 2


def silu(x: Tensor) -> Tensor:
    """SiLU（又名 Swish）：x·σ(x)；与门控一起用就是 SwiGLU。"""
    return x * torch.sigmoid(x)


# 上面的写法用来读；下面的融合算子用来跑，两者由测试逐个对照
LESSON_ACTIVATIONS: dict[str, Activation] = {
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "relu": relu,
    "relu2": relu_squared,
    "silu": silu,
}
ACTIVATIONS: dict[str, Activation] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "silu": F.silu,
}


class FeedForward(nn.Module):
    """前馈网络：每个词元各自变宽、过激活、再变窄；注意力搬运信息，它加工信息。

    公式：y = W_down·act(W_up·x)；门控（gated）时 y = W_down·(act(W_gate·x) ⊙ W_up·x)
    形状：x (B, T, D) → 中间 (B, T, F) → (B, T, D)
    错误：activation 不认识时抛 ValueError 并列出可选项
    """

    def __init__(
        self,
        dim: int,
        ffn_dim: int,
        *,
        activation: str = "gelu_tanh",
        gated: bool = False,
        bias: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_int("dim", dim, 1)
        check_int("ffn_dim", ffn_dim, 1)
        self.activation = check_choice("activation", activation, ACTIVATIONS)
        self.dropout = check_float("dropout", dropout, 0.0, exclusive_maximum=1.0)
        self.up_proj = nn.Linear(dim, ffn_dim, bias=bias)
        self.gate_proj = nn.Linear(dim, ffn_dim, bias=bias) if gated else None
        self.down_proj = nn.Linear(ffn_dim, dim, bias=bias)
        self.implementation = "fast"

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) → (B, T, D)。"""
        table = ACTIVATIONS if self.implementation == "fast" else LESSON_ACTIVATIONS
        activate = table[self.activation]
        hidden: Tensor
        if self.gate_proj is None:
            hidden = activate(self.up_proj(x))  # (B, T, F)
        else:
            hidden = activate(self.gate_proj(x)) * self.up_proj(x)  # (B, T, F)
        if self.training and self.dropout:
            hidden = F.dropout(hidden, self.dropout)
        return self.down_proj(hidden)  # type: ignore[no-any-return]


class TransformerBlock(nn.Module):
    """一个 Transformer 块：注意力与前馈，各带一条残差。

    公式：pre：x ← x + f(Norm(x))；post：x ← Norm(x + f(x))；f 依次是注意力、前馈
    形状：x (B, T, D) → (B, T, D)；positions、mask、cache 原样交给注意力
    错误：norm_position 只能是 "pre" 或 "post"
    """

    def __init__(
        self,
        attention: nn.Module,
        feed_forward: nn.Module,
        attention_norm: nn.Module,
        ffn_norm: nn.Module,
        *,
        norm_position: str = "pre",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.attention = attention
        self.feed_forward = feed_forward
        self.attention_norm = attention_norm
        self.ffn_norm = ffn_norm
        self.norm_position = check_choice("norm_position", norm_position, ("pre", "post"))
        self.dropout = check_float("dropout", dropout, 0.0, exclusive_maximum=1.0)

    def forward(
        self,
        x: Tensor,
        *,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """先搬运（注意力），再加工（前馈）。"""
        if self.norm_position == "pre":
            normed = self.attention_norm(x)
            x = x + self._drop(self.attention(normed, positions=positions, mask=mask, cache=cache))
            return x + self._drop(self.feed_forward(self.ffn_norm(x)))
        mixed = self.attention(x, positions=positions, mask=mask, cache=cache)
        x = self.attention_norm(x + self._drop(mixed))
        return self.ffn_norm(x + self._drop(self.feed_forward(x)))  # type: ignore[no-any-return]

    def _drop(self, x: Tensor) -> Tensor:
        # 残差上的随机失活（dropout）；推理时一次比较就过去，不多花一次模块调用
        return F.dropout(x, self.dropout) if self.training and self.dropout else x


def demo() -> None:
    """演示（稍后补全）。"""


if __name__ == "__main__":
    run_demo(demo)
