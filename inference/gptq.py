r"""舍入一个权重，能不能让还没舍入的那些替它补回来？——GPTQ：逐列取整，误差往后推。

一行权重 w（一个输出），要找整数格上的 ŵ，让输出差得最少（H 是输入的 XᵀX，见 calibration.py）：

$$\min_{\hat w\ \text{在格上}}\ (\hat w - w)\,H\,(\hat w - w)^\top$$

一起找是整数规划，难。一列一列地来就容易：第 j 列取整，定下了；剩下的列还是小数，可以随意挪，
挪到哪里最好，是一个普通的最小二乘，有公式：

$$e_j = \frac{w_j - \hat w_j}{[H_F^{-1}]_{jj}}, \qquad
  w_F \leftarrow w_F - e_j\,[H_F^{-1}]_{j,F}
  \qquad F = \text{还没取整的列}$$

    列   0   1   2   3   4        ■ 已取整   ● 正在取整   ○ 还是小数，被挪动
         ■   ■   ●   ○   ○
                 └─ 误差 e ─►     输入里与第 2 维一起变的维，替它补得最多

每定下一列，H_F 就少一行一列，它的逆要跟着变：直接求逆是 K 次 K³。GPTQ 的发现：所有这些逆的那
几行，正好就是 H⁻¹ 的 Cholesky 分解 H⁻¹ = UᵀU 里 U 的各行（差一个 U_jj）：

$$[H_F^{-1}]_{jj} = U_{jj}^2, \qquad [H_F^{-1}]_{j,F} = U_{jj}\,U_{j,F}
  \quad\Rightarrow\quad
  e_j' = \frac{w_j - \hat w_j}{U_{jj}},\ \ w_F \leftarrow w_F - e_j'\,U_{j,F}$$

求一次逆、分解一次，K³ 只有一次；各行互不相干，一列里 N 行一起做。

三个细节：
    阻尼 (damping)   H 加 λ·mean(diag H)·I：相关的维让 H 接近奇异，不加的话，误差会被推得满天飞
    尺子什么时候定   走到一组的开头，用那时（已经被挪过）的权重定；act_order 时次序乱了，只好先定好
    act_order        先取整输入大的列：它们错不起，趁后面还有许多列可以补

贪心不保证比直接取整好：误差推到最后几列，那里没有人补了。所以每一行两种都算，谁的输出误差小用谁：
在校准数据上，任何一行都不会比直接取整差。

常见疑问：
    为什么从左到右也行？  次序不同，结果差不多；大模型里先取整输入大的列更稳。
    为什么用 float64？    H 常接近奇异，求逆会放大舍入；K 不过几千，慢不了多少。

论文：Frantar et al. 2022, GPTQ, arXiv:2210.17323；Hassibi & Stork 1992, Optimal Brain Surgeon
改哪里：阻尼 → DAMPING；一次推多少列 → COLUMNS_AT_ONCE（只影响快慢）；
        次序 → `order_of`；怎样取整 → transformer_basics/integer_weights.py。
"""

from __future__ import annotations

import torch
from torch import Tensor

from foundation.demonstration import run_demo
from inference.calibration import InputStatistics, output_errors
from transformer_basics.integer_weights import (
    Packed,
    WeightFormat,
    decode,
    encode,
    grouped,
    pack,
    restore,
    round_to_codes,
    scales_of,
)

__all__ = ["better_rows", "gptq"]

DAMPING = 0.01  # 论文的默认值，相对于 H 对角线的平均
COLUMNS_AT_ONCE = 128  # 攒够这么多列，再一次推给后面的：矩阵乘法比一列一列地减快


def gptq(
    weight: Tensor,
    statistics: InputStatistics,
    form: WeightFormat,
    *,
    act_order: bool = False,
    damping: float = DAMPING,
) -> Packed:
    """看着输入挑整数：每一行的输出误差都不大于直接取整的。

    形状：weight (N, K)，H (K, K) → 与 `encode` 相同的三样
    类型：一路 float64；补偿是许多次减法，float32 会攒下误差
    错误：权重或 H 里有 NaN → ValueError
    """
    # 直接取整的也算一份：NaN 在这里拦住，最后还要与它比
    plain = encode(weight, form)
    compensated = compensate(weight.detach().cpu(), statistics.hessian, form, act_order, damping)
    return better_rows(weight, statistics, compensated, plain)


def compensate(
    weight: Tensor, hessian: Tensor, form: WeightFormat, act_order: bool, damping: float
) -> Packed:
    """逐列取整，误差推给后面的列；公式见本课开头。"""
    rows, columns = weight.shape
    group, n_groups = form.group_of(columns), form.n_groups(columns)
    order = order_of(hessian, act_order)  # (K,)
    upper = inverse_factor(hessian[order][:, order], damping)  # U (K, K)，上三角
    # 换成取整的次序；H 的行与列也跟着换过了
    left = weight.double()[:, order].clone()  # 还没取整的，会被一路挪动
    # 尺子：次序乱了就先定好；不乱，走到一组再定，下面会盖掉
    scale, zero = scales_of(grouped(weight, form), form)  # (N, G, 1)
    codes = torch.zeros(rows, n_groups * group, dtype=torch.int8)
    # 一批一批地推：批内一列一列地减，批外攒着
    for first in range(0, columns, COLUMNS_AT_ONCE):
        end = min(first + COLUMNS_AT_ONCE, columns)
        errors = left.new_zeros(rows, end - first)  # e′，攒着
        for j in range(first, end):
            place = int(order[j])  # 这一列在原来的矩阵里是第几列
            which = place // group
            # ① 一组的开头：用挪过的权重定尺子；最后一组可以不满
            if not act_order and place % group == 0:
                # 还没推到的误差先补上：这一组可能伸出这一批
                ahead = left[:, j : j + group].clone()
                if j + group > end:
                    ahead[:, end - j :] -= errors[:, : j - first] @ upper[first:j, end : j + group]
                part = scales_of(ahead.float(), form)
                scale[:, which] = part[0]
                if zero is not None and part[1] is not None:
                    zero[:, which] = part[1]
            # ② 取整这一列，N 行一起
            rule = scale[:, which], None if zero is None else zero[:, which]  # 各 (N, 1)
            column = left[:, j : j + 1]
            chosen = round_to_codes(column.float(), *rule, form)
            codes[:, place] = chosen[:, 0]
            # ③ 误差推给这一批里后面的列
            error = (column - restore(chosen, *rule, torch.float64))[:, 0] / upper[j, j]  # (N,)
            left[:, j + 1 : end] -= torch.outer(error, upper[j, j + 1 : end])
            errors[:, j - first] = error
        # ④ 攒够一批，一次推给这一批之后的全部列
        left[:, end:] -= errors @ upper[first:end, end:]
    packed = pack(codes.view(rows, n_groups, group), form.bits)
    return Packed(packed, scale[..., 0], None if zero is None else zero[..., 0])


def order_of(hessian: Tensor, act_order: bool) -> Tensor:
    """取整的次序：从左到右；act_order 时，输入大的在前。

    稳定的排序：一样大的保持原来的先后，每次都一样
    """
    if not act_order:
        return torch.arange(len(hessian))
    return torch.argsort(hessian.diagonal(), descending=True, stable=True)


def inverse_factor(hessian: Tensor, damping: float) -> Tensor:
    """H⁻¹ = UᵀU 的上三角 U；H 先加阻尼。

    从来是零的维（校准时没出现过）：对角线补上，它与谁都不相关，也就是直接取整
    错误：加了阻尼也不正定（里面有 NaN）→ ValueError
    """
    size = hessian.diagonal().mean()
    damped = hessian + torch.eye(len(hessian), dtype=hessian.dtype) * (damping * size)
    # 阻尼为零时，死了的维才会是零
    dead = damped.diagonal() <= 0
    damped.diagonal()[dead] = size if size > 0 else 1.0
    # 第一次分解是为了求逆，第二次才是要的 U
    lower, failed = torch.linalg.cholesky_ex(damped)
    if failed or not torch.isfinite(lower).all():
        raise ValueError("the Hessian of the inputs is not positive definite; use more damping")
    inverse = torch.cholesky_inverse(lower)
    upper: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return upper


def better_rows(
    weight: Tensor, statistics: InputStatistics, first: Packed, second: Packed
) -> Packed:
    """两种整数，逐行挑输出误差小的；行与行互不相干，所以可以混着用。

    一样大时用 second
    """
    # 误差在校准数据上量：H 里没有阻尼
    columns = weight.shape[1]
    errors = [output_errors(weight, decode(one, columns), statistics) for one in (first, second)]
    wins = (errors[0] < errors[1]).to(second.packed.device)  # (N,)

    def pick(a: Tensor, b: Tensor) -> Tensor:
        """第 i 行：first 赢了取它的，否则取 second 的。"""
        return torch.where(wins.view(-1, *[1] * (b.dim() - 1)), a.to(b.device), b)

    # 两份的格式相同：有零点就都有
    zero = None
    if first.zero is not None and second.zero is not None:
        zero = pick(first.zero, second.zero)
    return Packed(pick(first.packed, second.packed), pick(first.scale, second.scale), zero)


def two_columns_by_hand() -> None:
    """两维总是相等的输入：第一列少了的，第二列补上，输出一点不差。"""
    weight = torch.tensor([[0.4, 0.4]])
    print("① x₁ = x₂，w = [0.4, 0.4]，格子是整数：输出是 0.8·x")
    # 尺子固定为 1：只看补偿；
    # H 的四个数全是 1：两维完全相关
    hessian = torch.tensor([[1.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    upper = inverse_factor(hessian, 1e-6)
    left = weight.double().clone()
    first = left[0, 0].round()
    error = (left[0, 0] - first) / upper[0, 0]
    moved = left[0, 1] - error * upper[0, 1]
    print(
        f"   第一列 0.4 → {float(first):.0f}，第二列挪到 {float(moved):.3f} → {moved.round():.0f}"
    )
    # 两列合起来看，才知道差多少
    print("   直接取整是 [0, 0]，输出 0；补偿之后是 [0, 1]，输出 1·x，差得少")
    assert abs(float(moved) - 0.8) < 1e-3
    assert moved.round() == 1.0


def correlated_inputs() -> None:
    """输入越相关，补得越多；互不相关的，无从补起。"""
    # 权重都一样，只换输入
    torch.manual_seed(0)
    weight, form = torch.randn(64, 128), WeightFormat(4, 32)
    print("② 输出的相对误差（四比特、32 个一组）")
    for name, rank in (("互不相关", 128), ("挤在 32 维里", 32), ("挤在 8 维里", 8)):
        # 秩低的输入：128 维其实只有几个自由度
        x = torch.randn(4096, rank) @ torch.randn(rank, 128) + 0.05 * torch.randn(4096, 128)
        x = torch.randn(4096, 128) if rank == 128 else x
        statistics = InputStatistics.empty(128)
        statistics.add(x)
        # 误差与什么也不剩相比
        whole = output_errors(weight, torch.zeros_like(weight), statistics).sum()
        found = []
        for stored in (
            encode(weight, form),
            gptq(weight, statistics, form),
            gptq(weight, statistics, form, act_order=True),
        ):
            wrong = output_errors(weight, decode(stored, 128), statistics).sum()
            found.append(float((wrong / whole).sqrt()))
        # 任何一种输入，都不比直接取整差
        plain, ours, ordered = found
        print(f"   {name:　<6}  直接取整 {plain:.4f}  GPTQ {ours:.4f}  act_order {ordered:.4f}")
        assert max(ours, ordered) <= plain
        # 真的能补的时候，补得多
        assert rank == 128 or ours < 0.8 * plain


def demo() -> None:
    """手算两列，再看相关的输入。"""
    two_columns_by_hand()
    correlated_inputs()


if __name__ == "__main__":
    run_demo(demo)
