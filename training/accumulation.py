r"""内存只装得下小批，怎样得到与大批完全相同的更新？——梯度累积：加总，最后除一次。

大批的损失是 N 道题的平均。把 N 道题分成 A 个微批次（micro-batch），各算各的再合起来。
平均不能直接相加，和可以：所以每个微批次只求「损失之和」与「题数」，梯度一路累加，最后除以总题数。

$$L = \frac{\sum_{a} S_a}{\sum_{a} n_a}, \qquad
  \nabla L = \frac{1}{N}\sum_{a}\nabla S_a, \qquad N = \sum_a n_a$$

    微批次 0   前向 → S₀, n₀ ─ 反向 ─▶ g += ∇S₀ ┐
    微批次 1   前向 → S₁, n₁ ─ 反向 ─▶ g += ∇S₁ ├─▶ g × 1/N ─▶ ‖g‖ ─▶ 裁剪 ─▶ 更新
    微批次 2   前向 → S₂, n₂ ─ 反向 ─▶ g += ∇S₂ ┘   （只除一次，先除后裁）

常见的错法是「各自平均，再除以 A」（mean of means）：

$$\frac{1}{A}\sum_a \frac{S_a}{n_a} \;\ne\; \frac{\sum_a S_a}{\sum_a n_a}
  \qquad\text{除非各 } n_a \text{ 相等}$$

预训练时每批的题数相同，错了也看不出来；到了指令微调，答案长短不一，题少的那批里每道题的分量
就成了别人的几倍。损失曲线照样下降，只是学偏了——这样的错最难发现，所以有专门的测试盯着。

裁剪（gradient clipping）也在这里：梯度的总长度超过 c，就整体缩到 c，方向不变：

$$g \leftarrow g\cdot\min\!\left(1,\ \frac{c}{\lVert g\rVert}\right)$$

裁剪必须在除以 N 之后：累加的和比平均长 N 倍，先裁就几乎每步都被裁到同样长，学习率形同虚设。
实现时两个因子合成一个乘数，每个梯度只乘一次、只搬一趟内存。

论文：裁剪 — Pascanu et al., arXiv:1211.5063；
      累积时平均错了的实例 — Hugging Face, *Fixing Gradient Accumulation*, 2024。

改哪里：换损失（DPO、蒸馏）→ 另写一个 (model, batch) → (损失之和, 题数)，交给 Trainer；
        换裁剪的办法（按值、按层）→ clip_factor；多个进程 → sharding.py。
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundation.demonstration import run_demo
from training.batch import Batch
from training.sharding import whole

__all__ = [
    "LossFunction",
    "Movable",
    "clip_factor",
    "gradient_norm",
    "gradients_of",
    "language_model_loss",
    "scale_gradients",
]


class Movable(Protocol):
    """训练循环对一批的全部要求：能搬到设备上。有 window_ids 的，出错时会报出来。"""

    def to(self, device: torch.device) -> Any:
        """返回搬到 device 上的一批。"""


# (模型, 一批) → (损失之和, 题数)。两个都要，缺了题数就没法合成大批
LossFunction: TypeAlias = Callable[[nn.Module, Any], "tuple[Tensor, Tensor | int]"]


def language_model_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
    """语言模型的损失：每个位置猜下一个词元，交叉熵求和。

    形状：inputs、targets (B, T) → 标量、题数；目标是 −100 的位置两边都不算
    """
    # 打包的几段各从 0 数起；不打包的由模型自己数
    named = {} if batch.positions is None else {"positions": batch.positions}
    # 求和而不是平均：题数不同的批要先加起来，最后只除一次
    output = model(
        batch.inputs,
        batch.targets,
        document_ids=batch.document_ids,
        **named,
        reduction="sum",
        need_logits=False,  # 训练只要损失：V 很大时省下的内存与时间都可观
    )
    return output.loss, batch.n_targets


def gradients_of(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """有梯度的参数的梯度；这一步没有用到的参数（例如没被选中的专家）没有。"""
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def gradient_norm(gradients: Sequence[Tensor]) -> Tensor:
    """全部梯度接成一个长向量，它的长度；标量张量，还留在设备上。

    公式：‖g‖ = √(Σ_p ‖g_p‖²)；任何一个梯度里有 NaN 或无穷大，结果就不是有限数
    类型：16 位的梯度先转 float32 再求平方和，否则会溢出
    """
    if not gradients:
        return torch.zeros(())
    # 一次发出所有的小算子（foreach），而不是逐个参数算
    norm = torch.nn.utils.get_total_norm(
        [g if g.dtype == torch.float32 else g.float() for g in gradients], foreach=None
    )
    # FSDP 的梯度各进程只有一片：各片的平方和合起来，才是整个的长度
    return whole({"norm": norm})["norm"]


def clip_factor(norm: float, max_norm: float | None) -> float:
    """裁剪要乘的数：长度没超过就是 1。

    公式：min(1, c/(‖g‖ + 10⁻⁶))；加一点点，免得 ‖g‖ = 0 时除以 0
    """
    if max_norm is None:
        return 1.0
    return min(1.0, max_norm / (norm + 1e-6))


@torch.no_grad()
def scale_gradients(gradients: list[Tensor], factor: float) -> None:
    """所有梯度就地乘同一个数。"""
    # 乘 1 等于白搬一趟内存；没有梯度时 foreach 会报错
    if gradients and factor != 1.0:
        torch._foreach_mul_(gradients, factor)


def demo() -> None:
    """三个微批次，题数 6、1、3：加总再除与大批相同，各自平均再平均不同。

    为看得清，用一个极小的「给什么词，猜什么词」的模型，用 float64 算，差别就全是做法的错
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5)).double()
    ids, targets = torch.randint(5, (10,)), torch.randint(5, (10,))
    # 题数故意悬殊：相等的话，错的做法也会得到对的答案
    borders = ((0, 6), (6, 7), (7, 10))  # 三个微批次在十道题里的起止

    def loss(first: int, last: int, reduction: str) -> Tensor:
        chosen = slice(first, last)
        return F.cross_entropy(model(ids[chosen]), targets[chosen], reduction=reduction)

    def total_gradient(losses: Iterable[Tensor]) -> Tensor:
        # 逐个反向，梯度自己加到一起；再接成一个长向量，便于比较
        model.zero_grad(set_to_none=True)
        for each in losses:
            torch.autograd.backward(each)
        return torch.cat([g.flatten() for g in gradients_of(model.parameters())])

    # 一个大批：十道题的平均
    whole = total_gradient([loss(0, 10, "mean")])
    # 加总，最后除一次
    summed = total_gradient(loss(*border, "sum") for border in borders) / 10
    # 各自平均，再除以 3
    averaged = total_gradient(loss(*border, "mean") / 3 for border in borders)

    print("① 十道题分成 6、1、3 三个微批次；与一个大批的梯度比")
    for name, found in (("加总再除一次", summed), ("平均的平均  ", averaged)):
        error = ((found - whole).norm() / whole.norm()).item()
        print(f"   {name}  相对误差 {error:.1e}")
    assert torch.allclose(summed, whole, rtol=1e-12)
    assert (averaged - whole).norm() > 0.05 * whole.norm()

    print("② 「平均的平均」里，一道题的分量（大批里都是 1/10）")
    for count in (6, 1, 3):
        print(f"   在 {count} 道题的微批次里：1/3 × 1/{count} = {1 / 3 / count:.3f}")

    print("③ 先除后裁与先裁后除（c = 1）")
    norm = whole.norm().item()  # 平均损失的梯度
    right = norm * clip_factor(norm, 1.0)
    # 和的梯度是平均的 10 倍（十道题），几乎一定会被裁
    wrong = (10 * norm) * clip_factor(10 * norm, 1.0) / 10
    print(f"   平均的梯度长 {norm:.3f}，没超过 1，先除后裁不动它：{right:.3f}")
    print(f"   和的梯度长 {10 * norm:.3f}，先裁到 1 再除以 10：{wrong:.3f}，步子小了许多")
    assert right == norm
    assert abs(wrong - 0.1) < 1e-6


if __name__ == "__main__":
    run_demo(demo)
