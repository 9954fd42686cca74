r"""训练时的因果注意力，16 位怎样算得快？——按查询分块，用矩阵乘法写反向。

库里融合的核省内存，但在 CPU 上它的 bf16 反向没有用上专门的矩阵指令：64 个词元的一批，
一步的一半时间花在那里。把公式拆成矩阵乘法，反而快好几倍：

    前向  S = QKᵀ/√d + M    P = softmax(S)      O = PV
    反向  dV = Pᵀ dO        dP = dO Vᵀ          dS = P ⊙ (dP − rowsum(P ⊙ dP))
          dQ = dS K/√d      dK = dSᵀ Q/√d

因果掩码遮掉一半，算了也白算；所以把查询分成几块，第 i 块只乘前面的键：

          键 →
    查   ■ · · ·      四块时只算 10/16 个格子；块内的对角线仍要掩码
    询   ■ ■ · ·      每一块看得见自己的全部键，所以 softmax 一次算对，
    ↓    ■ ■ ■ ·      用不着在线修正（那是 flash_attention.py 的事）
         ■ ■ ■ ■

P 要不要存？存着，反向少乘一次；T 大了就太占内存：每层 B·H·T²/2 个数。所以短的存，长的在反向里
重算（recompute），内存回到 O(T)。

什么时候没有用：float32（库的核不慢）；有掩码、窗口、随机失活（交给库）；GPU（用 FlashAttention）。

论文：Dao 等 2022《FlashAttention》附录 B 的反向公式 (arXiv:2205.14135)；
     Rabe 与 Staats 2021，分块重算 (arXiv:2112.05682)

改哪里：块的大小与「多短才存 P」→ 本页开头的两个常数；何时走这条路 → fast_attention.py。
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from foundation.demonstration import run_demo

__all__ = ["blocked_attention"]

KEEP_UP_TO = 512  # T 不超过它，P 存到反向；再长就重算
SMALLEST_BLOCK, BLOCKS = 64, 4  # 分成四块左右，块再小，派发的开销就比省下的多


def block_size(length: int) -> int:
    """查询分成多大的块：四块左右，至少 64 个一块。"""
    return max(SMALLEST_BLOCK, -(-length // BLOCKS))


@lru_cache(maxsize=64)
def causal_bias(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """加在打分上的掩码：右下角对齐，未来是 −∞，其余是 0。

    形状：(rows, columns)；查询块的第 i 行对应键 columns − rows + i
    约定：每层每步都要，算好就留着；只读
    """
    # 先铺满 −∞，再把看得见的一侧（下三角）清成 0
    blank = torch.full((rows, columns), -torch.inf, dtype=dtype)
    return blank.triu_(columns - rows + 1)


def blocks_of(length: int) -> Iterator[tuple[int, int]]:
    """逐块给出 [first, last)。

    约定：头尾相接，不重不漏；最后一块可以短一些
    """
    # 块的边界只由 T 定：前向与反向各走一遍，走的必须是同样的块
    size = block_size(length)
    for first in range(0, length, size):
        yield first, min(first + size, length)


def probabilities(query: Tensor, key: Tensor, bias: Tensor, scale: float) -> Tensor:
    """P = softmax(QKᵀ·scale + M)，一块查询对它看得见的全部键。

    形状：query (N, t, d)、key (N, s, d) → (N, t, s)
    类型：与 query 同 dtype；softmax 的核在内部用 float32
    """
    # 掩码当作「加上去的底」，与乘法、缩放合成一个算子
    scores = torch.baddbmm(bias, query, key.transpose(1, 2), alpha=scale)
    return torch.softmax(scores, dim=-1)


class _BlockedAttention(torch.autograd.Function):
    """见本页开头的公式；(N, T, d) 进，(N, T, d) 出，N = 批 × 头。

    批与头并成一维：每个头互不相干，bmm 正好一个头一个乘法，两个核各做一半
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        length = query.shape[1]
        ctx.scale = 1.0 / math.sqrt(query.shape[2])
        # ① 一块一块地算；块与块之间没有依赖
        outputs, kept = [], []
        for first, last in blocks_of(length):
            bias = causal_bias(last - first, last, query.dtype)
            p = probabilities(query[:, first:last], key[:, :last], bias, ctx.scale)
            outputs.append(torch.bmm(p, value[:, :last]))
            if length <= KEEP_UP_TO:
                kept.append(p)  # (N, t, last)，反向时省一次乘法
        # ② 只有一块时（短句子）不必拼接，省一次复制
        output = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)
        ctx.save_for_backward(query, key, value, *kept)
        return output

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:
        query, key, value, *kept = ctx.saved_tensors
        length = query.shape[1]
        # dQ 各块自己一份，最后拼起来；dK、dV 是各块的和
        grad_queries: list[Tensor] = []
        grad_key = grad_value = query  # 第一圈就换掉
        # 从最后一块倒着来：它看得见全部的键，它的 dK、dV 就是底子，别的块往前一段上加
        for index, (first, last) in reversed(list(enumerate(blocks_of(length)))):
            q, g = query[:, first:last], slope[:, first:last]  # (N, t, d)
            # ③ 这一块的 P：存了就用存的
            if kept:
                p = kept[index]
            else:
                # 长的没有存，照前向再算一遍：同样的输入、同样的算子，逐位相同
                bias = causal_bias(last - first, last, query.dtype)
                p = probabilities(q, key[:, :last], bias, ctx.scale)
            # ④ O = PV 的两个梯度
            part_value = torch.bmm(p.transpose(1, 2), g)  # (N, last, d)
            grad_p = torch.bmm(g, value[:, :last].transpose(1, 2))
            # ⑤ softmax 的反向；1/√d 乘在这里，只乘一次，dQ 与 dK 就都有了
            grad_s = torch.ops.aten._softmax_backward_data(grad_p, p, -1, p.dtype).mul_(ctx.scale)
            grad_queries.insert(0, torch.bmm(grad_s, key[:, :last]))
            part_key = torch.bmm(grad_s.transpose(1, 2), q)
            # ⑥ 键与值被好几块查询看过，各块的梯度要加起来
            if last == length:
                grad_key, grad_value = part_key, part_value
            else:
                grad_key[:, :last] += part_key
                grad_value[:, :last] += part_value
        return torch.cat(grad_queries, dim=1), grad_key, grad_value


def blocked_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """因果注意力：方阵、没有别的掩码、没有随机失活。

    公式：O = softmax(QKᵀ/√d + M)·V，M 在 j ≤ i 处为 0，其余为 −∞
    形状：Q (B, H, T, d)、K 与 V (B, G, T, d) → (B, H, T, d)；H 是 G 的倍数
    类型：输出与 query 同 dtype
    """
    batch, heads, length, size = query.shape
    groups = key.shape[1]
    # 分组查询：抄成一样多；抄写的反向（同组的加起来）由 autograd 负责
    if groups != heads:
        key = key.repeat_interleave(heads // groups, dim=1)
        value = value.repeat_interleave(heads // groups, dim=1)
    # 换过轴的 q、k、v 在内存里不连续，bmm 要连续的：reshape 在这里各抄一次
    flat = (batch * heads, length, size)
    output = _BlockedAttention.apply(query.reshape(flat), key.reshape(flat), value.reshape(flat))
    return output.view(batch, heads, length, size)  # type: ignore[no-any-return]


def demo() -> None:
    """与库的核比输出、比梯度、比快慢；再数一数分块省了多少格。"""
    import time

    # 150 不是块的整数倍：最后一块短一截，边角最容易错
    inputs = [torch.randn(2, 3, 150, 16, requires_grad=True) for _ in range(3)]
    slope = torch.randn(2, 3, 150, 16)
    # 两种算法各算一遍输出与三个梯度
    results = []
    for attend in (
        blocked_attention,
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    ):
        output = attend(*inputs)
        results.append([output, *torch.autograd.grad(output, inputs, slope)])
    gaps = [float((a - b).detach().abs().max()) for a, b in zip(*results, strict=True)]
    print("① 与库的核相差：" + "  ".join(f"{n} {g:.0e}" for n, g in zip("OQKV", gaps, strict=True)))
    assert max(gaps) < 1e-5  # 只差加法的次序

    # 块越多，越接近一半；但块小了，每一块的派发开销就显出来
    # 数格子：每一块是「行数 × 看得见的键数」
    print("② 分块之后算几成格子（不分块是 1，严格的下三角是一半）：", end="")
    for length in (64, 256, 1024):
        done = sum((last - first) * last for first, last in blocks_of(length)) / length**2
        print(f"T={length} {done:.3f}  ", end="")
    print()
    assert done == 0.625  # (1 + 2 + 3 + 4) / 16

    # 前向加反向一起量：训练时两样都要
    # 时间随机器而变，只印不断言；没有 bf16 指令的机器上两者都慢
    print("③ bf16，64 个词元，256 个头：前向加反向")
    inputs = [torch.randn(64, 4, 64, 32).bfloat16().requires_grad_() for _ in range(3)]
    slope = torch.randn(64, 4, 64, 32).bfloat16()
    for name, attend in (
        ("库的核", lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True)),
        ("分块  ", blocked_attention),
    ):
        times = []
        # 取最快的一次；第一次还要热身
        for _ in range(4):
            began = time.perf_counter()
            torch.autograd.grad(attend(*inputs), inputs, slope)
            times.append(time.perf_counter() - began)
        print(f"   {name} {1e3 * min(times):6.2f} 毫秒")


if __name__ == "__main__":
    run_demo(demo)
