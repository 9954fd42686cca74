r"""五万个词的打分表，怎样不整张存下来就算出损失与梯度？——一段一段算，前向反向一起做。

最后一层给每个位置打 V 个分。GPT-2 的 V = 50257，一千个位置就是五千万个数：float32 存一张 200 MB，
而交叉熵前前后后要四张（分数、转成 float32、log-softmax、它的梯度）。一半的内存花在这里。

    x (M, D) ──×Wᵀ──► z (M, V) ──softmax──► p (M, V) ──► 损失 = −Σ log p[target]
                       └ 只为了 ∂L/∂z = p − onehot(target)，用完就扔

梯度的公式里没有别人的东西：一行的 p 与它自己的目标就够了。所以前向时顺手把反向也做完，
只留下两个小的结果：

$$\frac{\partial L}{\partial z} = p - y, \qquad
  \frac{\partial L}{\partial x} = (p - y)\,W, \qquad
  \frac{\partial L}{\partial W} = (p - y)^\top x$$

    整张算    分数 + float32 + log-softmax + 梯度      4·M·V 个数
    分段算    一段的分数 + ∂L/∂x + ∂L/∂W               m·V + M·D + V·D 个数，m 由 CHUNK_BYTES 定

反向真正到来时，只要乘上后面传来的那个数（几乎总是 1）。

什么时候没有用：V 很小（字符模型，65 个词）时一段就是全部，省不下内存，也不慢；
要看 logits 本身时（生成、蒸馏）走 loss.py 的老路；lm_head 装了 LoRA 或量化过，也走老路。

论文：Wijmans 等 2024《Cut Your Losses》(arXiv:2411.09009)；
      Hsu 等 2024《Liger Kernel》(arXiv:2410.10989)

改哪里：一段多大 → CHUNK_BYTES；分数的限幅（logit softcap）→ _slope_of 里的那几行。
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from foundation.demonstration import run_demo
from transformer_basics.linear import mixed_precision_here, product

__all__ = ["chunked_loss"]

CHUNK_BYTES = 128 * 2**20  # 一段分数至多这么大；再大不更快，只是更占内存
SOFTMAX_BYTES = 2 * 2**20  # softmax 每次处理的一小块（float32），小到能留在每个核的缓存里
WEIGHT_ROWS = 8192  # 乘词表矩阵时一次几行，理由同 linear.py 的 WIDE_PIECE


def chunked_loss(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    ignore_index: int = -100,
    softcap: float | None = None,
) -> Tensor:
    """交叉熵之和，不产生整张 logits。

    公式：L = Σ_m [logsumexp(z_m) − z_m[target_m]]，z = x·Wᵀ；target = ignore_index 的行不算
    形状：x (M, D)、weight (V, D)、targets (M,) → 标量
    类型：乘法与 x 的类型相同（CPU 上 bf16 自动混合精度时用 bf16），softmax 与求和用 float32
    """
    # ① 没有标签的行，梯度恒为 0，连分数都不必算：指令微调里这一步省下一大半
    counted = targets != ignore_index
    if not bool(counted.all()):
        rows = counted.nonzero()[:, 0]
        x, targets = x[rows], targets[rows]
    # ② 用什么类型乘：听 autocast 的；之后它就不该再插手，类型都由这里写明
    if mixed_precision_here(x) or torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
    else:
        dtype = x.dtype
    with torch.autocast(x.device.type, enabled=False):
        return _ChunkedLoss.apply(x, weight, targets, softcap, dtype)  # type: ignore[no-any-return]


class _ChunkedLoss(torch.autograd.Function):
    """前向：损失，以及（要求导时）两个梯度；反向：乘上传来的数，交出去。

    autograd 通常是前向记下要用的东西，反向再算；这里反过来，前向就算完，因为要用的东西（整张
    p）比算出来的结果大得多
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, softcap: float | None, dtype: Any
    ) -> Tensor:
        need_x, need_weight = ctx.needs_input_grad[:2]
        half, table = x.to(dtype), weight.to(dtype)
        total = torch.zeros((), dtype=torch.float32, device=x.device)
        grad_x = torch.empty_like(x) if need_x else None
        grad_weight: Tensor | None = None
        # ③ 一段有几行：由 V 决定；词表小，一段就是全部
        vocab = len(weight)
        rows = max(1, CHUNK_BYTES // (vocab * half.element_size()))
        for first in range(0, len(x), rows):
            some = half[first : first + rows]  # (m, D)
            # ④ 这一段的分数，就地变成 ∂L/∂z
            z = product(some, table.t())  # (m, V)
            total += _slope_of(z, targets[first : first + rows], softcap)
            # ⑤ 立刻乘成两个梯度；z 用完就放掉，下一段用同一块内存
            if grad_x is not None:
                grad_x[first : first + rows] = _times(z, table)
            if need_weight:
                grad_weight = _add_outer(grad_weight, z, some, weight)
            del z  # 名字还在，旧的一段就要等新的算完才放：同时占两段
        if need_weight and grad_weight is None:  # 一道题也没有
            grad_weight = torch.zeros_like(weight)
        # 不用 save_for_backward：backward 要把它们原样交出去，只许有一个人拿着
        ctx.gradients = grad_x, grad_weight
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: Tensor) -> Any:
        gradients, ctx.gradients = ctx.gradients, None
        # 交出去之后就没有了：再反向一次要重新前向
        if gradients is None:
            raise RuntimeError("the chunked loss keeps its gradients for one backward only")
        # 在 GPU 上取一个数要停下来等，不如直接乘
        scale = float(slope) if slope.device.type == "cpu" else None
        if scale != 1.0:  # 几乎总是 1：Trainer 对「和」求导，最后才除以题数
            gradients = tuple(g if g is None else g.mul_(slope) for g in gradients)
        return (*gradients, None, None, None)


def _slope_of(z: Tensor, targets: Tensor, softcap: float | None) -> Tensor:
    """把一段分数 z 就地换成 ∂L/∂z = p − onehot，返回这一段的损失之和。

    公式：log p[t] = z_t − m + log p_max，m 是一行里最大的分：p_max ≥ 1/V，取对数不会下溢，
          省去整行再求一遍指数
    公式：有限幅时 z' = c·tanh(z/c)，∂z'/∂z = 1 − (z'/c)²，乘在最后
    形状：z (m, V)，targets (m,) → 标量；softmax 在 float32 里做
    """
    loss = torch.zeros((), dtype=torch.float32, device=z.device)
    # 几行一小块：转成 float32、softmax、写回，几趟都在缓存里走完
    rows = max(1, SOFTMAX_BYTES // (4 * z.shape[1]))
    for part, wanted in zip(z.split(rows), targets[:, None].split(rows), strict=True):
        scores = part.float()
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        right = scores.gather(1, wanted) - scores.amax(dim=1, keepdim=True)  # z_t − m (r, 1)
        slope = torch.softmax(scores, dim=-1)  # p (r, V)
        right += slope.amax(dim=1, keepdim=True).log()
        loss -= right.sum()
        # 正确的那一格减 1：在 float32 里减，p 接近 1 时差才留得住
        slope.scatter_(1, wanted, torch.expm1(right))
        if softcap is not None:
            # 限幅的导数：分数越靠近 ±c，梯度越小
            slope *= 1.0 - (scores / softcap).square()
        part.copy_(slope)
    return loss


def _times(z: Tensor, table: Tensor) -> Tensor:
    """∂L/∂x = ∂L/∂z · W；词表分段相乘，在 float32 里累加。

    形状：(m, V) @ (V, D) → (m, D)
    """
    # float32 时乘法自己就累加得准；词表小时一次乘完
    if z.dtype is torch.float32 or len(table) <= WEIGHT_ROWS:
        return z @ table
    # 几万项相加，每 8192 项落一次 bf16 太粗：段与段之间用 float32
    total = torch.zeros(len(z), table.shape[1], dtype=torch.float32, device=z.device)
    for first in range(0, len(table), WEIGHT_ROWS):
        total += product(z[:, first : first + WEIGHT_ROWS], table[first : first + WEIGHT_ROWS])
    return total


def _add_outer(total: Tensor | None, z: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """∂L/∂W += ∂L/∂zᵀ · x；第一段直接写，省去清零。

    形状：(V, m) @ (m, D) → (V, D)，与权重同类型
    """
    # 只有一段、类型又相同（float32 的小模型）：一个乘法就是答案
    if total is None and z.dtype == weight.dtype:
        return z.t() @ x
    # 逐段写进同一块内存，从不产生第二张词表那么大的梯度
    result = torch.empty_like(weight) if total is None else total
    for first in range(0, len(weight), WEIGHT_ROWS):
        part = z[:, first : first + WEIGHT_ROWS].t() @ x  # (几行, D)
        # copy_ 与 add_ 顺便转类型，不产生中间的 float32
        target = result[first : first + WEIGHT_ROWS]
        target.copy_(part) if total is None else target.add_(part)
    return result


def demo() -> None:
    """与整张算的比损失、比梯度；量两种算法的反向各要存多少字节。

    带着限幅与没有标签的行一起比：单独都对、合起来错的写法，这里才看得出
    """
    x = torch.randn(300, 64, requires_grad=True)
    weight = (0.3 * torch.randn(5000, 64)).requires_grad_()
    targets = torch.randint(5000, (300,))  # 随便的答案：只比两种算法，不学什么
    targets[::3] = -100  # 三分之一没有标签

    def whole() -> Tensor:
        logits = 20.0 * torch.tanh(x @ weight.t() / 20.0)
        return F.cross_entropy(logits, targets, reduction="sum")

    def chunked() -> Tensor:
        return chunked_loss(x, weight, targets, softcap=20.0)

    kept: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        """autograd 要存一个张量时叫它：记下有多少字节。"""
        kept.append(tensor.numel() * tensor.element_size())
        return tensor

    results = []
    for name, compute in (("整张", whole), ("分段", chunked)):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = compute()
        results.append([loss.detach(), *torch.autograd.grad(loss, (x, weight))])
        print(f"{name}：损失 {loss.item():.4f}，为反向存了 {sum(kept) / 1e6:.1f} MB")
    for name, a, b in zip(("损失", "∂L/∂x", "∂L/∂W"), *results, strict=True):
        error = float((a - b).norm() / b.norm())
        print(f"  {name} 相对误差 {error:.1e}")
        assert error < 1e-5  # 只差加法的次序


if __name__ == "__main__":
    run_demo(demo)
