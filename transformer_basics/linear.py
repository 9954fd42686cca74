r"""一个线性层，16 位时怎样算得快？——权重只转一次，反向自己写，瘦长的乘法切开算。

    y = xWᵀ + b             x (M, K)   W (N, K)   y (M, N)；M 是一批里词元的总数

反向也是两个矩阵乘法，再加一个求和：

$$\frac{\partial L}{\partial x} = G\,W, \qquad
  \frac{\partial L}{\partial W} = G^\top x, \qquad
  \frac{\partial L}{\partial b} = \textstyle\sum_m G_m, \qquad G = \frac{\partial L}{\partial y}$$

混合精度（bf16）训练时，权重存着 float32，乘法用 bf16。自动混合精度（autocast）一个算子一个算子地
换类型，正确，但在 CPU 上有三处浪费；这里各有一个对策，都能单独关掉，好看清它值多少：

    浪费                               对策                                    开关
    ─ q、k、v 各转一遍 x、各乘一次     三个矩阵叠成一个，一次乘完              "joined"
    ─ 有的形状只用到一个核             把输出的列切成几段，逐段乘              "pieces"
    ─ 每个算子都经过 autocast 的派发   整层写成一个函数，前向反向都自己来      "written"

第二条是量出来的：1024 行、768 列的输出，bf16 的库核在两个核上与一个核上一样快；切成 256 列一段，
快一倍。矩阵大到两边都够切时（4096 行），不切也一样快，所以只切瘦的。

什么时候没有用：float32 训练（没有转换可省，乘法也不会只用一个核）；GPU（乘法的切分由驱动管）；
torch.compile 之后（派发已经没有了）。这三种情形都走 F.linear。

论文：Micikevicius 等 2018《Mixed Precision Training》(arXiv:1710.03740)

改哪里：
  · 想换切法——pieces_of；先跑 benchmarks/speed_shares.py 看自己的机器要不要切。
  · 想让别的层也走快路——用本页的 Linear 代替 nn.Linear，参数名与存法都不变。
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundation.demonstration import run_demo
from transformer_basics.speed_ups import SPEED_UPS, without

__all__ = ["Linear", "fits", "mixed_precision_here", "product", "project_together", "stacked"]

# 输出这么宽、行数又不多时，库的核在多核上切不开；两个界与段宽都是量出来的
NARROW_ROWS, NARROW_COLUMNS, PIECE = 1024, (512, 1024), 256
# 很宽的输出（几万个词的打分）切成大段，每段的结果留在缓存里
WIDE_COLUMNS, WIDE_PIECE = 16384, 8192


def mixed_precision_here(x: Tensor) -> bool:
    """现在是不是「CPU 上、bf16 自动混合精度、要求导、没有编译」。

    不求导时（评估、生成）autocast 会把转好的权重留着用，不比这里慢
    约定：只看状态，不碰数据；不是这种情形就用库的算子，结果一样，只是各走各的快路
    """
    return (
        x.device.type == "cpu"
        and SPEED_UPS["written"]
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") is torch.bfloat16
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
    )


def pieces_of(rows: int, columns: int) -> int:
    """输出 (rows, columns) 该切成多宽的一段；返回 columns 就是不切。"""
    if not SPEED_UPS["pieces"]:
        return columns
    # 只看形状，不看时间：同样的形状总是同样的切法，结果才可重现；
    # 若是边跑边试、哪个快用哪个，续训时试出另一种，末位就变了
    if columns >= WIDE_COLUMNS:
        return WIDE_PIECE
    low, high = NARROW_COLUMNS
    return PIECE if rows <= NARROW_ROWS and low < columns <= high else columns


def product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right；形状不利时把 right 的列切开，逐段算进同一块输出。

    公式：[L·R₀ | L·R₁ | …] = L·[R₀ | R₁ | …]；每个数的加法次序不变，切与不切只差库核的选择
    形状：(M, K) @ (K, N) → (M, N)
    """
    columns = right.shape[1]
    width = pieces_of(left.shape[0], columns)
    if width >= columns:
        return left @ right
    # 每段都够宽，乘法本身不会变慢；够窄，库才肯让两个核各做一份
    output = left.new_empty(left.shape[0], columns)
    for part, piece in zip(output.split(width, dim=1), right.split(width, dim=1), strict=True):
        torch.mm(left, piece, out=part)  # 写进视图，不再拼接
    return output  # 与整个算的同一块形状、同一个次序


class _MixedLinear(torch.autograd.Function):
    """几个同输入的线性层一起算：前向、反向都在 bf16 里乘，梯度交出 float32。

    形状：x (…, K)，第 i 层的权重 (Nᵢ, K) → 各 (…, Nᵢ)
    类型：乘法的累加在核里是 float32，落到内存时舍入成 bf16；与 autocast 相同
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, n_layers: int, *parameters: Tensor | None) -> Any:
        weights = [w for w in parameters[:n_layers] if w is not None]
        biases = parameters[n_layers:]
        # ① x 与权重各转一次；叠成一个大矩阵，一次乘完
        half = x.to(torch.bfloat16)
        flat = half.reshape(-1, half.shape[-1])  # (M, K)
        output = product(flat, stacked(weights).t())  # (M, ΣN)
        ctx.sizes = [part.shape[0] for part in weights]  # 反向时照此切开
        ctx.input_dtype = x.dtype
        #    转好的权重不留：反向再转一次只多百分之一的时间，省下一份 bf16 的模型
        ctx.save_for_backward(flat, *weights)
        # ② 各层取回自己的那几列（视图，不复制）；加偏置
        parts = output.view(*x.shape[:-1], -1).split(ctx.sizes, dim=-1)
        for part, bias in zip(parts, biases, strict=True):
            if bias is not None:
                part += bias.to(torch.bfloat16)
        return tuple(parts) if n_layers > 1 else parts[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        flat, *weights = ctx.saved_tensors
        # ③ 各层的梯度并排放，又是一个大矩阵
        joined = gradients[0] if len(gradients) == 1 else torch.cat(gradients, dim=-1)
        slope = joined.reshape(-1, joined.shape[-1])  # G (M, ΣN)
        grad_x: Tensor | None = None
        # 第一层的输入可以不要梯度；别的层都要，误差才传得下去
        if ctx.needs_input_grad[0]:
            grad_x = (
                product(slope, stacked(weights)).view(*joined.shape[:-1], -1).to(ctx.input_dtype)
            )
        # ④ 权重的梯度立刻变成 float32：几个微批次要在 float32 里累加，bf16 加多了会停住
        grad_weights: list[Tensor | None] = [None] * len(ctx.sizes)
        if any(ctx.needs_input_grad[2 : 2 + len(ctx.sizes)]):
            # 冻结的（LoRA 的底座）不必算，省下三分之一的乘法
            whole = slope.t() @ flat  # (ΣN, K)
            grad_weights = [part.float() for part in whole.split(ctx.sizes)]
        # ⑤ 偏置加在每个词元上，梯度就是所有词元的和
        wanted = ctx.needs_input_grad[2 + len(ctx.sizes) :]  # 没有的、冻结的都不要
        grad_biases: list[Tensor | None] = [None] * len(ctx.sizes)
        if any(wanted):
            sums = slope.sum(dim=0).float().split(ctx.sizes)
            grad_biases = [s if want else None for s, want in zip(sums, wanted, strict=True)]
        return grad_x, None, *grad_weights, *grad_biases


def stacked(weights: Sequence[Tensor]) -> Tensor:
    """几个权重转成 bf16，上下叠成一个：各 (Nᵢ, K) → (ΣN, K)。

    只有一个时不拼接：少搬一趟内存
    """
    half = [weight.to(torch.bfloat16) for weight in weights]
    return half[0] if len(half) == 1 else torch.cat(half)


class Linear(nn.Linear):
    """y = xWᵀ + b；与 nn.Linear 同名、同形、同样存取，只是 bf16 训练时走上面写出来的那条路。"""

    def forward(self, x: Tensor) -> Tensor:
        """(…, K) → (…, N)；混合精度时输出 bf16，否则与权重同 dtype。"""
        if fits(self.weight) and mixed_precision_here(x):
            return _MixedLinear.apply(x, 1, self.weight, self.bias)  # type: ignore[no-any-return]
        return F.linear(x, self.weight, self.bias)


def fits(weight: Tensor) -> bool:
    """上面那条路收的权重：float32 的，或冻结的 bf16（不必再转；没有梯度要交，类型无所谓）。"""
    frozen_half = weight.dtype is torch.bfloat16 and not weight.requires_grad
    return weight.dtype is torch.float32 or frozen_half


def project_together(x: Tensor, layers: Sequence[nn.Module]) -> list[Tensor]:
    """几个层看同一个 x（q、k、v 就是如此）：能叠成一次乘法就叠，不能就逐个算。

    公式：[xW₁ᵀ | xW₂ᵀ | …] = x·[W₁; W₂; …]ᵀ
    约定：各层同属一类、那一类有自己的 forward_together（装了 LoRA 的就是），交给它
    约定：有一层不是本页的 Linear（量化过），就全都逐个算，结果相同
    """
    # 别人的层也许也会叠：问它自己，它说不行就给 None
    own = getattr(type(layers[0]), "forward_together", None)
    if own is not None and all(type(layer) is type(layers[0]) for layer in layers):
        found: list[Tensor] | None = own(x, layers)
        if found is not None:
            return found
    # 只认 Linear 本身，不认它的子类与包装：别人可能改了算法
    together = [layer for layer in layers if type(layer) is Linear]
    joined = len(together) == len(layers) and SPEED_UPS["joined"] and mixed_precision_here(x)
    if len(layers) == 1 or not joined or not all(fits(layer.weight) for layer in together):
        return [layer(x) for layer in layers]
    # 只有一层时没有可叠的；到了这里，至少两层，都是 float32 的权重
    # 次序就是调用者给的次序：先权重、后偏置，反向交回梯度时也照此排
    weights = [layer.weight for layer in together]
    biases = [layer.bias for layer in together]
    return list(_MixedLinear.apply(x, len(together), *weights, *biases))


def demo() -> None:
    """与库比输出与梯度，再看叠着算、切开算各省了多少。

    先对再快：两条路的梯度都与 float64 的公式比，误差要在同一个量级
    """
    import time

    # ① 三个层看同一个 x：写出来的与 autocast 比
    layers = [Linear(96, n) for n in (96, 32, 32)]  # 分组查询：k、v 比 q 窄
    x = torch.randn(4, 50, 96, requires_grad=True)

    # 关掉几个提速，重算一遍同样的梯度
    def gradients(*off: str) -> list[Tensor]:
        with without(*off), torch.autocast("cpu", torch.bfloat16):
            outputs = project_together(x, layers)
        loss = torch.stack([out.float().square().sum() for out in outputs]).sum()
        # 七个：x、三个权重、三个偏置
        wanted = [x, *(layer.weight for layer in layers), *(layer.bias for layer in layers)]
        return list(torch.autograd.grad(loss, wanted))

    # 相对误差 = ‖差‖ / ‖真值‖；bf16 的一次舍入约千分之二
    print("① 三个线性层的七个梯度，与 float32 的公式相比（相对误差）：")
    # 标准答案：同样的数，用 float64 照公式算
    exact = [x.double().detach().requires_grad_()]
    exact += [p.detach().double().requires_grad_() for p in (y.weight for y in layers)]
    exact += [p.detach().double().requires_grad_() for p in (y.bias for y in layers)]
    pairs = zip(exact[1:4], exact[4:], strict=True)
    truth = torch.stack([(exact[0] @ w.t() + b).square().sum() for w, b in pairs]).sum()
    wanted = torch.autograd.grad(truth, exact)
    for name, off in (("写出来的", ()), ("autocast", ("written", "joined"))):
        errors = [
            float((g.double() - e).norm() / e.norm())
            for g, e in zip(gradients(*off), wanted, strict=True)
        ]
        print(f"   {name}  最大 {max(errors):.4f}   ← bf16 的舍入，千分之几")
        assert max(errors) < 0.02

    # ② 切开算：同一个乘法，同一台机器，只是分几次
    # 这个形状就是 gpt2 里注意力输出那一层的
    left, right = torch.randn(1024, 768).bfloat16(), torch.randn(768, 768).bfloat16()
    times: dict[str, list[float]] = {"整个": [], "切开": []}
    for _ in range(15):  # 交替着量，机器忙起来时两边一起慢
        # 量时间要小心：第一次要热身，机器也时忙时闲；
        # 两种轮流先后，谁也不总占便宜
        for name, whole in (("整个", True), ("切开", False)):
            with without(*["pieces"] * whole):
                began = time.perf_counter()
                product(left, right)
                times[name].append(time.perf_counter() - began)
    # 取最快的一次：慢的那些多半是别的程序在抢
    for name, values in times.items():
        print(f"② 1024×768 乘 768×768，{name}算：{1e3 * min(values):.2f} 毫秒")
    with without("pieces"):
        uncut = product(left, right)
    # 每个数的加法次序不变，多半一位不差；库若换了核，也只差一两格
    gap = float((uncut.float() - product(left, right).float()).abs().max())
    print(f"   两种算法的结果最多差 {gap:.3g}（数的大小约 28，bf16 的一格是 0.125）")
    assert gap <= 0.5


if __name__ == "__main__":
    run_demo(demo)
