r"""autograd 会替每个小算子写反向，为什么还要自己写？——一串小算子的反向，合起来往往只有一行。

autograd 不知道一串算子合起来是什么：前向 k 个算子，它就存 k 份中间结果、走 k 步反向，每一步都把整个
张量读一遍、写一遍。CPU 上的小模型，时间就花在这些来回上。公式推到底，只剩很少几步：

    RMSNorm  前向  r = 1/√(mean(x²) + ε)      x̂ = x·r            y = γ ⊙ x̂
             反向  ∂x = r·(γ⊙g − x̂·mean(γ⊙g⊙x̂))                  ∂γ = Σ g ⊙ x̂
    旋转     前向  y = R(θ)·x                  反向  ∂x = R(−θ)·g：转回去就是
    ReLU²    前向  y = max(x, 0)²              反向  ∂x = 2·max(x, 0)·g

$$\frac{\partial}{\partial x}\,\max(x,0)^2 = 2\max(x, 0), \qquad R(\theta)^\top = R(-\theta)$$

存的也少了：RMSNorm 只存 x 与每个词元一个 r；旋转什么也不存（表本来就在）；ReLU² 只存一份。

推导 RMSNorm 的一行：y 里的 x 出现两次，一次在分子，一次在 r 里。∂r/∂x = −r³·x/D，代进去合并同类项，
第二项就是「g 在 x̂ 方向上的那一份」：归一化把长度定死了，沿着 x 的方向推，输出不动，
梯度也就该减掉它。

什么时候没有用：GPU 上库里有融合的核；编译（torch.compile）会自己合并；不求导时没有反向。
这几种情形都走原来的算子。

论文：Zhang 与 Sennrich 2019 (arXiv:1910.07467)；Su 等 2021 (arXiv:2104.09864)；
     So 等 2021 (arXiv:2109.08668)

改哪里：想给别的零件也写反向 → 照着写一个 Function，测试用 gradcheck 与 autograd 对照。
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from foundation.demonstration import run_demo
from transformer_basics.speed_ups import SPEED_UPS

__all__ = ["backward_is_written", "relu_squared", "rms_norm", "rotate"]


def backward_is_written(x: Tensor) -> bool:
    """本页比 autograd 快的情形：CPU、要求导、没有编译。

    约定：只看状态，不碰数据；不是这种情形就走原来的算子，结果只差舍入
    """
    return (
        x.device.type == "cpu"
        and SPEED_UPS["backward"]  # 关掉它，就量得出它值多少
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
    )


def widen(x: Tensor) -> Tensor:
    """半精度的变成 float32，别的不动：平方和在 bf16 里只剩两三位有效数字。"""
    half: bool = x.dtype in (torch.bfloat16, torch.float16)
    return x.float() if half else x


class _RMSNorm(torch.autograd.Function):
    """y = γ·x/√(mean(x²) + ε)。

    形状：x (…, D)、γ (D,) → (…, D)；存 x、γ 与每个词元的 r
    类型：内部至少 float32；∂x 与 x 同 dtype，∂γ 与 γ 同 dtype
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = widen(x)
        # ① 每个词元一个数；向量的长度有现成的核，一趟读完，不必先写出 x²
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)  # (…, 1)
        scale = (length.square() / x.shape[-1] + eps).rsqrt_()  # r
        ctx.save_for_backward(x, weight, scale)
        # ② γ 在变回 x 的类型之前乘，少舍入一次
        output: Tensor = (wide * scale).mul_(weight).to(x.dtype)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> Any:
        x, weight, scale = ctx.saved_tensors
        # x̂ 不存，再乘一次就有：乘一次比存下来、读回来便宜
        g, normed = widen(slope), widen(x) * scale  # g、x̂ (…, D)
        # ③ 沿着 x̂ 的那一份推不动输出，减掉
        pushed = g * weight
        along = (pushed * normed).mean(dim=-1, keepdim=True)  # (…, 1)
        grad_x = torch.addcmul(pushed, normed, along, value=-1.0).mul_(scale)
        # ④ γ 被每个词元用过，梯度是它们的和
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = (g * normed).flatten(0, -2).sum(dim=0).to(weight.dtype)
        return grad_x.to(x.dtype), grad_weight, None


class _Rotate(torch.autograd.Function):
    """转过一个角；反向转回来。

    形状：x (B, H, T, d)；表 (T, d) 或 (B, 1, T, d)，各个头共用
    旋转的矩阵是正交的，转置就是逆，所以反向不必另推公式
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
        # 只记两张表的引用：表本来就在，一个字节也没有多存
        ctx.save_for_backward(cos, signed_sin)
        return _turn(x, cos, signed_sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> Any:
        cos, signed_sin = ctx.saved_tensors
        # 角取负：cos 不变，sin 变号；表很小（T×d），取负不花时间
        # 位置表不学，所以后两个没有梯度
        return _turn(slope, cos, -signed_sin), None, None


def _turn(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """(a, b) → (a·cos − b·sin, b·cos + a·sin)；负号已写进表里，见 rotary.py。"""
    wide = widen(x)
    swapped = wide.roll(x.shape[-1] // 2, dims=-1)  # [b | a]
    return (wide * cos).addcmul_(swapped, signed_sin).to(x.dtype)


class _ReluSquared(torch.autograd.Function):
    """y = max(x, 0)²。

    负的地方 max 是 0，梯度里又乘了它一次，自然也是 0，不必再判断一次；所以只存 max(x, 0)
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        # 存的是截过的，不是 x：反向只用得着它
        kept = x.clamp(min=0.0)
        ctx.save_for_backward(kept)
        return kept * kept

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> Any:
        (kept,) = ctx.saved_tensors
        # 就地乘 2：slope·kept 已是新的一份
        return (slope * kept).mul_(2.0)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """γ·x/√(mean(x²) + ε)；x (…, D)、γ (D,) → (…, D)，与 x 同 dtype，内部至少 float32。"""
    return _RMSNorm.apply(x, weight, eps)  # type: ignore[no-any-return]


def rotate(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """与 rotary.py 的 rotate 同一件事；x (B, H, T, d)，表 (T, d) 或 (B, 1, T, d)。"""
    return _Rotate.apply(x, cos, signed_sin)  # type: ignore[no-any-return]


def relu_squared(x: Tensor) -> Tensor:
    """max(x, 0)²，逐元素。"""
    return _ReluSquared.apply(x)  # type: ignore[no-any-return]


def demo() -> None:
    """三个函数各与 autograd 比梯度、比存的字节、比快慢。"""
    import time
    from collections.abc import Callable

    import torch.nn.functional as F

    # 一批 q 的样子：8 句、4 个头、256 个词元、每头 32 维
    x = torch.randn(8, 4, 256, 32, requires_grad=True)  # (B, H, T, d)
    gamma = torch.rand(32, requires_grad=True)
    angles = torch.rand(256, 16)  # 随便的角：检验的是写法，不是频率
    cos = torch.cat([angles.cos()] * 2, dim=-1)
    signed_sin = torch.cat([-angles.sin(), angles.sin()], dim=-1)
    slope = torch.randn_like(x)  # 上游传来的梯度

    # 对照：照公式写前向，反向交给 autograd
    def plain_norm() -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * gamma

    def plain_turn() -> Tensor:
        return torch.addcmul(x * cos, x.roll(16, dims=-1), signed_sin)

    # 三行各一个函数；RMSNorm 要对 x 与 γ 两个求导
    # 名字 → (写出来的, 交给 autograd 的, 对谁求导)
    table: dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor], list[Tensor]]] = {
        "RMSNorm": (lambda: rms_norm(x, gamma, 1e-6), plain_norm, [x, gamma]),
        "旋转   ": (lambda: rotate(x, cos, signed_sin), plain_turn, [x]),
        "ReLU²  ": (lambda: relu_squared(x), lambda: F.relu(x).square(), [x]),
    }
    print(f"① {x.numel():,} 个数的张量上，写出来的反向对 autograd 的反向")
    for name, (written, plain, wanted) in table.items():
        rows = []
        for compute in (written, plain):
            kept: list[int] = []

            def note(tensor: Tensor, kept: list[int] = kept) -> Tensor:
                """autograd 要存一个张量时叫它。"""
                kept.append(tensor.numel() * tensor.element_size())
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
                output = compute()
            # 同样的上游梯度，两边的结果才可比
            gradients = torch.autograd.grad(output, wanted, slope)
            # 前向加反向一起量；取最快的一次
            # 时间只印不断言：机器忙起来，谁快谁慢都不作数
            seconds = []
            for _ in range(5):
                began = time.perf_counter()
                torch.autograd.grad(compute(), wanted, slope)
                seconds.append(time.perf_counter() - began)
            rows.append((gradients, sum(kept), min(seconds)))
        # 推导若错了一个符号，这里就不是 1e-7，而是 1
        pairs = zip(rows[0][0], rows[1][0], strict=True)
        gap = max(float((a - b).norm() / b.norm()) for a, b in pairs)
        print(
            f"{name}  梯度相对误差 {gap:.0e}   "
            f"存 {rows[0][1] / 1e6:.2f} 对 {rows[1][1] / 1e6:.2f} MB   "
            f"{1e3 * rows[0][2]:.2f} 对 {1e3 * rows[1][2]:.2f} 毫秒"
        )
        assert gap < 1e-5
        # 旋转的 autograd 也只存表：两边一样多
        assert rows[0][1] <= rows[1][1]
    # 转过去再转回来，就是没有转：反向因此不必另推
    # 旋转不改变长度，误差也就不会放大
    back = rotate(rotate(x, cos, signed_sin), cos, -signed_sin)
    # cos² + sin² = 1 只在舍入之内成立
    drift = float((back - x).detach().abs().max())
    print(f"② R(−θ)·R(θ)·x 与 x 最多相差 {drift:.0e}")
    assert drift < 1e-5


if __name__ == "__main__":
    run_demo(demo)
