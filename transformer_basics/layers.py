r"""注意力之外，一个 Transformer 块还有什么？——归一化、前馈网络、残差。

    Pre-LN（GPT-2 及以后）                        Post-LN（2017 年的原版）
    x ──┬─► Norm ─► Attention ──► (+) ─► x'       x ──┬─► Attention ──► (+) ─► Norm ─► x'
        └──────────────────────────┘                 └──────────────────┘
    x' ─┬─► Norm ─► FeedForward ► (+) ─► y        x' ─┬─► FeedForward ─► (+) ─► Norm ─► y
        └──────────────────────────┘                 └───────────────────┘
    (B, T, D) 进，(B, T, D) 出；块可以一个接一个地叠

$$\text{Pre: } x' = x + f(\mathrm{Norm}(x)) \qquad \text{Post: } x' = \mathrm{Norm}(x + f(x))$$

三样东西各管一件事：
  残差（residual）  每块只在 x 上添一笔，而不是重写；梯度有一条直路回到第一层。
  归一化（norm）    把每个词元的大小拉回同一尺度；没有它，几层之后数就大得没法学。
  前馈（FFN）       注意力搬运信息，前馈加工信息；大部分参数在这里。

Pre 与 Post 之争：Pre-LN 的残差路上没有归一化，梯度直达；越深，每块所添的占比越小，最后几层
的梯度也越小，训练因此平稳。Post-LN 最后几层的梯度不随深度变小，不预热（warmup）容易发散。

层归一化与批归一化（batch norm）的分别：前者只看一个词元自己的 D 个数，所以训练与推理是同一个
公式，批里混进谁、序列多长，结果都不变；后者要看整批，语言模型里几乎不用。

为什么前馈要变宽：激活按坐标轴折，轴越多，能折出的花样越多；有人把每个隐藏单元看作一条记忆，
W_up 的一行是「遇到什么」，W_down 的一列是「就说什么」。

论文：Ba 等 2016《Layer Normalization》(arXiv:1607.06450)；Zhang 与 Sennrich 2019《RMSNorm》
     (arXiv:1910.07467)；Shazeer 2020《GLU Variants》(arXiv:2002.05202)；
     Geva 等 2021《Feed-Forward Layers Are Key-Value Memories》(arXiv:2012.14913)；
     Xiong 等 2020《On Layer Normalization in the Transformer》(arXiv:2002.04745)

改哪里：
  · 想加一种归一化——写一个 (dim, eps) 的模块，登记到 NORMS，GPTConfig 就认得它。
  · 想改块的接法（并行注意力、三明治归一化）——TransformerBlock.forward。
  · 想加一种激活——activations.py；想换初始化——GPT（gpt_model/model.py），块不管初始化。
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundation.checks import check_choice, check_float, check_int
from foundation.demonstration import new_figure, run_demo, save_figure
from transformer_basics import written_backward
from transformer_basics.activations import (
    ACTIVATIONS,
    LESSON_ACTIVATIONS,
    gelu,
    gelu_tanh,
    relu_squared,
    silu,
)
from transformer_basics.document_attention import Visibility
from transformer_basics.kv_cache import KVCache
from transformer_basics.linear import Linear
from transformer_basics.recomputation import recompute
from transformer_basics.written_backward import backward_is_written

__all__ = ["NORMS", "FeedForward", "LayerNorm", "RMSNorm", "TransformerBlock"]
__all__ += ["ACTIVATIONS", "LESSON_ACTIVATIONS", "gelu", "gelu_tanh", "relu_squared", "silu"]
__all__ += ["layer_norm", "rms_norm"]


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """层归一化（LayerNorm）：每个词元各自减均值、除以标准差。

    公式：y = γ·(x − μ)/√(σ² + ε) + β，μ、σ² 沿最后一维；σ² 除以 D 而不是 D − 1
    形状：x (…, D)，γ、β (D,) → (…, D)
    类型：内部至少 float32（bf16 的平方和只剩两三位有效数字），输出与 x 同 dtype
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    # ① 先减均值再平方：直接算 E[x²] − μ²，在 μ 很大时会把有效数字减光
    centred = wide - wide.mean(dim=-1, keepdim=True)  # (…, D)
    variance = centred.square().mean(dim=-1, keepdim=True)  # (…, 1)
    # ② ε 在根号里面：D 个数全相同时方差为零，也不会除以零；导入权重时 ε 要与原模型一样
    y = centred * torch.rsqrt(variance + eps) * weight
    return (y if bias is None else y + bias).to(x.dtype)  # (…, D)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """均方根归一化（RMSNorm）：只除以大小，不减均值，也没有偏置；少一半统计量，效果相当。

    公式：y = γ·x/√(mean(x²) + ε)
    形状：x (…, D)，γ (D,) → (…, D)
    类型：内部至少 float32，输出与 x 同 dtype
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    mean_square = wide.square().mean(dim=-1, keepdim=True)  # (…, 1)
    # γ 在变回 x 的 dtype 之前乘：先变再乘，bf16 里会多舍入一次
    return (wide * torch.rsqrt(mean_square + eps) * weight).to(x.dtype)  # (…, D)


class LayerNorm(nn.Module):
    """带参数的层归一化：γ 从 1、β 从 0 开始，先不改变什么，再慢慢学。

    implementation 为 "fast" 时用融合的核，"lesson" 时用上面写出来的公式；两者的结果相同
    """

    def __init__(self, dim: int, eps: float = 1e-5, bias: bool = True) -> None:
        super().__init__()
        self.shape = (check_int("dim", dim, 1),)
        self.eps = check_float("norm_eps", eps, exclusive_minimum=0.0)
        # 没有 β 的写法也常见：少一份参数，效果不差
        self.weight = nn.Parameter(torch.ones(dim))  # γ (D,)
        self.bias = nn.Parameter(torch.zeros(dim)) if bias else None  # β (D,)
        self.implementation = "fast"

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) → (…, D)。"""
        if self.implementation == "fast":
            return F.layer_norm(x, self.shape, self.weight, self.bias, self.eps)
        return layer_norm(x, self.weight, self.bias, self.eps)


class RMSNorm(nn.Module):
    """带参数的均方根归一化：只有 γ，从 1 开始。

    implementation 的含义同 LayerNorm
    """

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.shape = (check_int("dim", dim, 1),)
        self.eps = check_float("norm_eps", eps, exclusive_minimum=0.0)
        self.weight = nn.Parameter(torch.ones(dim))  # γ (D,)
        self.implementation = "fast"

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) → (…, D)。"""
        if self.implementation != "fast":
            return rms_norm(x, self.weight, self.eps)
        if backward_is_written(x):  # CPU 上训练：反向也写出来，少走许多趟
            return written_backward.rms_norm(x, self.weight, self.eps)
        if x.dtype == self.weight.dtype:
            return F.rms_norm(x, self.shape, self.weight, self.eps)
        # 自动混合精度下 x 可能是 bf16 而 γ 是 float32；融合的核要两者同类型，取宽的那个
        wide = torch.promote_types(x.dtype, self.weight.dtype)
        return F.rms_norm(x.to(wide), self.shape, self.weight.to(wide), self.eps).to(x.dtype)


# GPTConfig 的 norm 字段按名字在这里找；模型里没有一处写着「如果是 rmsnorm」
NORMS: dict[str, type[LayerNorm] | type[RMSNorm]] = {"layernorm": LayerNorm, "rmsnorm": RMSNorm}


class FeedForward(nn.Module):
    """前馈网络：每个词元各自变宽、过激活、再变窄，彼此不通气。

    公式：y = W_down·act(W_up·x)；门控（gated）时 y = W_down·(act(W_gate·x) ⊙ W_up·x)
    形状：x (B, T, D) → 中间 (B, T, F) → (B, T, D)
    错误：activation 不认识时抛 ValueError，列出可选的与最像的

    门控是让一半隐藏单元决定另一半开多大；激活为 silu 时叫 SwiGLU，为 gelu 时叫 GEGLU。
    它多一个矩阵，所以 F 通常取到不门控时的 2/3，参数总数才相同。
    dropout 丢的是中间的隐藏单元；残差上的那一处由 TransformerBlock 管。
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
        # 先检查再分配：写错的宽度在这里就停下，而不是等矩阵乘法报一句看不懂的话
        check_int("dim", dim, 1)
        check_int("ffn_dim", ffn_dim, 1)
        self.activation = check_choice("activation", activation, ACTIVATIONS)
        self.dropout = check_float("dropout", dropout, 0.0, exclusive_maximum=1.0)
        # 名字与 Llama、Qwen 的权重一致，导入时不用翻译
        self.up_proj = Linear(dim, ffn_dim, bias=bias)  # D → F
        self.gate_proj = Linear(dim, ffn_dim, bias=bias) if gated else None  # D → F
        self.down_proj = Linear(ffn_dim, dim, bias=bias)  # F → D
        self.implementation = "fast"
        self.recompute_level, self.recompute = "selective", False  # 见 recomputation.py

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) → (B, T, D)。"""
        # ① 激活每次按名字查：use_implementation 随时可以换成写出来的那一套
        table = ACTIVATIONS if self.implementation == "fast" else LESSON_ACTIVATIONS
        activate = table[self.activation]
        # ② 变宽；有门就再算一份门
        wide: Tensor = self.up_proj(x)  # (B, T, F)
        gate = None if self.gate_proj is None else self.gate_proj(x)  # (B, T, F)
        if self.recompute:
            return recompute(self._bend_and_narrow, activate, wide, gate)
        return self._bend_and_narrow(activate, wide, gate)

    def _bend_and_narrow(
        self, activate: Callable[[Tensor], Tensor], wide: Tensor, gate: Tensor | None
    ) -> Tensor:
        """拐弯、变窄：(B, T, F) → (B, T, D)。

        单独成一个函数，是为了能单独重算：拐弯之后的那一份大（F = 4D）而便宜（逐元素），
        内存紧时不存，反向再算
        """
        hidden = activate(wide) if gate is None else activate(gate) * wide
        # ③ 变窄，交回主路
        if self.training and self.dropout:
            hidden = F.dropout(hidden, self.dropout)
        return self.down_proj(hidden)  # type: ignore[no-any-return]


class TransformerBlock(nn.Module):
    """一个 Transformer 块：先搬运（注意力），再加工（前馈），各带一条残差。

    公式：pre：x ← x + f(Norm(x))；post：x ← Norm(x + f(x))；f 依次是注意力、前馈
    形状：x (B, T, D) → (B, T, D)；positions、mask、cache 原样交给注意力
    错误：norm_position 只能是 "pre" 或 "post"

    四个零件由外面造好传进来，块只管接线：所以换一种注意力、前馈或归一化，都不必改这里。
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
        # 名字就是权重文件里的前缀：blocks.0.attention.q_proj.weight …
        self.attention = attention
        self.feed_forward = feed_forward
        self.attention_norm = attention_norm
        self.ffn_norm = ffn_norm
        self.norm_position = check_choice("norm_position", norm_position, ("pre", "post"))
        self.dropout = check_float("dropout", dropout, 0.0, exclusive_maximum=1.0)
        self.recompute_level, self.recompute = "block", False  # 见 recomputation.py

    def forward(
        self,
        x: Tensor,
        *,
        positions: Tensor | None = None,
        mask: Visibility | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """参数的含义见 CausalSelfAttention.forward。"""
        # 整块重算：只留 x；有缓存时不行，算两遍就接进去两遍
        if self.recompute and cache is None:
            return recompute(self._both_halves, x, positions, mask, None)
        return self._both_halves(x, positions, mask, cache)

    def _both_halves(
        self, x: Tensor, positions: Tensor | None, mask: Visibility | None, cache: KVCache | None
    ) -> Tensor:
        """先注意力，再前馈；norm_position 决定归一化接在哪里。

        形状：x (B, T, D) → (B, T, D)
        """
        if self.norm_position == "pre":
            # 归一化只在支路上；主路 x 从头到尾只做加法
            normed = self.attention_norm(x)
            x = x + self._drop(self.attention(normed, positions=positions, mask=mask, cache=cache))
            return x + self._drop(self.feed_forward(self.ffn_norm(x)))  # (B, T, D)
        # 归一化在主路上：每块出去的大小都一样，梯度回来时也要一层层穿过它
        mixed = self.attention(x, positions=positions, mask=mask, cache=cache)
        x = self.attention_norm(x + self._drop(mixed))
        return self.ffn_norm(x + self._drop(self.feed_forward(x)))  # type: ignore[no-any-return]

    def _drop(self, x: Tensor) -> Tensor:
        """残差上的随机失活（dropout）；推理时一次比较就过去，省下一次模块调用。"""
        return F.dropout(x, self.dropout) if self.training and self.dropout else x


def norms_by_hand() -> None:
    """一个词元四维，手算得出来：均值 3，方差 5，均方根 √14。

    再看两种归一化各对什么视而不见：这正是「减不减均值」的全部差别
    """
    x = torch.tensor([0.0, 2.0, 4.0, 6.0])
    one, zero = torch.ones(4), torch.zeros(4)
    for name, normed in (
        ("LayerNorm", layer_norm(x, one, zero, 1e-5)),
        ("RMSNorm", rms_norm(x, one, 1e-5)),
    ):
        print(f"① {name:9s} {x.tolist()} → {[round(value, 3) for value in normed.tolist()]}")
    assert torch.allclose(layer_norm(x, one, zero, 1e-5), (x - 3.0) / 5.0**0.5, atol=1e-4)
    assert torch.allclose(rms_norm(x, one, 1e-5), x / 14.0**0.5, atol=1e-4)
    # 放大十倍，两者都看不出来；整体加十，只有 LayerNorm 看不出来
    for name, changed in (("放大十倍", x * 10.0), ("整体加十", x + 10.0)):
        layer = float(
            (layer_norm(changed, one, zero, 1e-5) - layer_norm(x, one, zero, 1e-5)).norm()
        )
        rms = float((rms_norm(changed, one, 1e-5) - rms_norm(x, one, 1e-5)).norm())
        print(f"   {name}之后，输出变了多少：LayerNorm {layer:.3f}，RMSNorm {rms:.3f}")


def gated_has_the_same_size() -> None:
    """门控多一个矩阵，把中间宽度取到 2/3，参数就一样多。

    公式：普通 2·D·4D = 8D²；门控 3·D·(8D/3) = 8D²
    """
    # 96 能被 3 整除，2/3 才取得到整数；真模型里会再凑成 64 或 256 的倍数
    plain = FeedForward(96, 4 * 96, bias=False)
    gated = FeedForward(96, 4 * 96 * 2 // 3, activation="silu", gated=True, bias=False)
    sizes = [sum(p.numel() for p in ffn.parameters()) for ffn in (plain, gated)]
    print(f"② 前馈的参数：普通（宽 384）{sizes[0]}，门控（宽 256）{sizes[1]}，都是 8·D²")
    assert sizes == [8 * 96**2] * 2


def last_layer_gradient(norm_position: str, depth: int) -> tuple[float, float]:
    """叠 depth 个块，返回最后一块前馈的梯度大小，与主路上的数有多大（标准差）。

    Pre-LN 的主路只加不减，方差随层数线性增长；最后一块所添的一笔相对越来越小，
    梯度也就按 1/√层数 变小。Post-LN 每块都把主路拉回 1，没有这一层缓冲
    """
    # 用到时才导入：attention.py 要用本页的 RMSNorm
    from transformer_basics.attention import CausalSelfAttention

    dim = 64
    torch.manual_seed(0)
    blocks = nn.Sequential()
    # 每个块各有各的零件：共用一个模块，就成了同一层循环用
    for _ in range(depth):
        norms = (LayerNorm(dim), LayerNorm(dim))
        ffn = FeedForward(dim, 4 * dim)
        attention = CausalSelfAttention(dim, 4)
        blocks.append(TransformerBlock(attention, ffn, *norms, norm_position=norm_position))
    # 初始化若太小，支路几乎是零，接法怎样都一样；
    # 每个矩阵取单位增益，让支路与主路一样响，才看得出接法的差别
    for parameter in blocks.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    stream = blocks(torch.randn(4, 32, dim))  # (B, T, D)
    # 只看刚搭好、一步没练的样子：发散往往就发生在最初几步。
    # 两种接法最后都过一次归一化再打分，比较才公平；答案是随机的，只为有一个损失
    logits = F.layer_norm(stream, (dim,)) @ torch.randn(dim, 100) / dim**0.5
    F.cross_entropy(logits.flatten(0, 1), torch.randint(100, (128,))).backward()
    gradient = blocks[-1].get_parameter("feed_forward.up_proj.weight").grad
    assert gradient is not None
    return float(gradient.norm()), float(stream.std().detach())


def demo() -> None:
    """归一化手算一遍，参数数一遍，Pre 与 Post 比一遍。

    第三步不训练，只看刚搭好的网络：哪种接法更容易练，在第一步之前就看得出来
    """
    norms_by_hand()
    gated_has_the_same_size()
    print("③ 还没训练时，最后一块的梯度（与主路的大小）随深度怎样变")
    # 同样的零件、同样的种子，只换接法与层数
    table = {}
    for position in ("pre", "post"):
        for depth in (2, 8, 32):
            table[position, depth] = last_layer_gradient(position, depth)
        cells = (
            f"{d} 层 {table[position, d][0]:.3f}（{table[position, d][1]:.1f}）" for d in (2, 8, 32)
        )
        print(f"   {position:4s}  " + "   ".join(cells))
    print("   Pre-LN 越深越温和；Post-LN 不变小，所以深的 Post-LN 需要预热")
    assert table["pre", 32][0] < 0.5 * table["pre", 2][0]
    assert table["post", 32][0] > 0.8 * table["post", 2][0]


def plot(path: Path) -> None:
    """横轴是深度：左边是最后一块的梯度，右边是主路上的数有多大。

    两个轴都取对数，幂律画出来是直线：Pre-LN 左图向下，右图向上，斜率约为 ∓1/2
    """
    depths = (2, 4, 8, 16, 32)
    figure, axes = new_figure(1, 2, size=(9.5, 4.0))
    for position in ("pre", "post"):
        rows = [last_layer_gradient(position, depth) for depth in depths]
        for axis, values in zip(axes, zip(*rows, strict=True), strict=True):
            axis.loglog(depths, values, "o-", base=2, label=f"{position}-LN")
    titles = ("gradient of the last feed-forward", "size of the residual stream")
    for axis, title in zip(axes, titles, strict=True):  # 左、右两张图
        axis.set(title=title, xlabel="layers")
        axis.legend()
    save_figure(figure, path)


if __name__ == "__main__":
    run_demo(demo, plot)
