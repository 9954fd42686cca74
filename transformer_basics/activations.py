r"""前馈网络中间的那道弯怎样拐？——激活函数（activation）。

没有激活，两层线性叠起来还是一层线性：W₂(W₁x) = (W₂W₁)x。激活让每个隐藏单元学会
「什么时候开」，网络才表达得出分情况的规则。

$$\mathrm{GELU}(x) = x\,\Phi(x), \qquad
  \mathrm{SiLU}(x) = x\,\sigma(x), \qquad
  \mathrm{ReLU}^2(x) = \max(x, 0)^2$$

    ReLU                GELU / SiLU              ReLU²
        ／                  ／                      ╱
       ／                  ／                      ╱
    ──┘                 ─╮╱                     ───╯
    负数一律关上         负数关上，但零附近圆滑     零附近圆滑，大的更大

    逐元素：(…, F) → (…, F)，形状不变

GELU 有两种写法：精确的用误差函数 erf；GPT-2 用 tanh 近似，当年 erf 算得慢。
两者相差不到千分之一，但导入别人的权重时要选对。

论文：Hendrycks 与 Gimpel 2016《GELU》(arXiv:1606.08415)；Ramachandran 等 2017《Swish》
     (arXiv:1710.05941)；So 等 2021《Primer》ReLU² (arXiv:2109.08668)

选哪一种：差别不大，先用预设里的。从零训练小模型，relu2 省算力且不吃亏；
          照着 Llama、Qwen 搭，用 silu 加门控；导入 GPT-2，必须用 gelu_tanh。

改哪里：
  · 想加一种激活——写一个函数，在 LESSON_ACTIVATIONS 与 ACTIVATIONS 各加一行；
    GPTConfig 的 activation 字段立刻认得它的名字。
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from foundation.demonstration import new_figure, run_demo, save_figure
from transformer_basics import written_backward
from transformer_basics.written_backward import backward_is_written

__all__ = ["ACTIVATIONS", "LESSON_ACTIVATIONS"]
__all__ += ["gelu", "gelu_tanh", "relu", "relu_squared", "silu"]


def relu(x: Tensor) -> Tensor:
    """ReLU：max(x, 0)。

    最省的一种；代价是一直为负的单元梯度恒为零，从此不再学习
    """
    return x.clamp(min=0.0)


def relu_squared(x: Tensor) -> Tensor:
    """ReLU²：max(x, 0)²。

    在零点处导数也连续；输出有许多恰好是零，稀疏而便宜；大的激活被放大，相当于更挑剔
    """
    return relu(x) ** 2


def gelu(x: Tensor) -> Tensor:
    """GELU（精确）：x·Φ(x) = x/2·(1 + erf(x/√2))。

    Φ 是标准正态的分布函数：x 越大，越可能「开」；GELU 是随机开关的期望
    """
    return 0.5 * x * (1.0 + torch.erf(x / math.sqrt(2.0)))


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU（tanh 近似，GPT-2 所用）：x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³)))。

    √(2/π) 让零点的斜率对上；0.044715 是拟合出来的常数，照抄即可
    """
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def silu(x: Tensor) -> Tensor:
    """SiLU（又名 Swish）：x·σ(x)，σ(x) = 1/(1 + e⁻ˣ)。

    形状与 GELU 相近；与门控一起用就是 SwiGLU，见 layers.py
    """
    return x * torch.sigmoid(x)


def fast_relu_squared(x: Tensor) -> Tensor:
    """同一个 ReLU²；CPU 上训练时反向也写出来，少存一份、少走几趟，见 written_backward.py。"""
    return written_backward.relu_squared(x) if backward_is_written(x) else F.relu(x).square()


# 上面的写法用来读，下面的融合算子用来跑：写出来的 GELU 要来回读写内存七八次，融合的只要一次。
# 两张表键相同、值相等，由测试逐个对照
LESSON_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "relu": relu,
    "relu2": relu_squared,
    "silu": silu,
}
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "relu2": fast_relu_squared,
    "silu": F.silu,
}


def demo() -> None:
    """同样的输入，各拐多大的弯。"""
    # ① 并排看数：负数那一侧谁还留着一点，正数那一侧谁放大
    x = torch.tensor([-3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0])
    print("① 输入      " + "".join(f"{value:8.1f}" for value in x.tolist()))
    for name, activate in LESSON_ACTIVATIONS.items():
        print(f"   {name:10s}" + "".join(f"{value:8.3f}" for value in activate(x).tolist()))
        assert torch.allclose(activate(x), ACTIVATIONS[name](x), atol=1e-6)

    # 用 float64 比：差别本身很小，不能让 float32 的舍入掺进来
    # ② 两种 GELU 差多少：画成曲线看不出来，逐个词元比对权重时看得出来
    grid = torch.linspace(-6.0, 6.0, 100_001, dtype=torch.float64)
    gap = (gelu(grid) - gelu_tanh(grid)).abs()
    print(f"② 精确与 tanh 近似最多差 {float(gap.max()):.6f}，在 |x| = ", end="")
    print(f"{abs(float(grid[gap.argmax()])):.2f} 处")
    assert 1e-4 < float(gap.max()) < 1e-3

    # GELU 与 SiLU 只有在零点才是零，所以一个也省不了
    # ③ 稀疏：输入若是标准正态，ReLU 一族有一半恰好是零，可以不算
    sample = torch.randn(100_000)
    for name in ("relu", "relu2", "gelu", "silu"):
        zeros = float((ACTIVATIONS[name](sample) == 0).float().mean())
        print(f"③ {name:5s} 输出恰好为零的比例 {zeros:.3f}")
        assert zeros < 0.01 or abs(zeros - 0.5) < 0.01

    # ④ 没有弯，就没有深度：两层线性合成一层，输出逐数相等
    first, second, v = torch.randn(8, 4), torch.randn(4, 8), torch.randn(4)
    error = float((second @ (first @ v) - (second @ first) @ v).abs().max())
    print(f"④ 去掉激活，两层与合成的一层相差 {error:.1e}：白叠了")
    assert error < 1e-5


def plot(path: Path) -> None:
    """左边是函数，右边是导数：学习的信号乘着导数往回走，导数为零的地方学不动。

    看三处：ReLU 的导数在零点跳一下；GELU 与 SiLU 的导数会略超过 1，也会略小于 0；
    ReLU² 的导数一直往上走，所以激活大的单元学得快，也更要小心学习率
    """
    x = torch.linspace(-4.0, 4.0, 401, requires_grad=True)
    figure, (values, slopes) = new_figure(1, 2, size=(10.0, 4.2))
    for name, activate in LESSON_ACTIVATIONS.items():
        y = activate(x)
        (slope,) = torch.autograd.grad(y.sum(), x)
        # 两种 GELU 在图上重合，近似的那条画成虚线
        style = "--" if name == "gelu_tanh" else "-"
        values.plot(x.detach(), y.detach(), style, label=name)
        slopes.plot(x.detach(), slope, style, label=name)
    values.set(title="activation", xlabel="x", ylabel="f(x)", ylim=(-0.6, 4.0))
    slopes.set(title="its derivative", xlabel="x", ylabel="f'(x)", ylim=(-0.4, 2.5))
    for axis in (values, slopes):
        axis.axhline(0.0, color="grey", linewidth=0.6)
        axis.legend()
    save_figure(figure, path)


if __name__ == "__main__":
    run_demo(demo, plot)
