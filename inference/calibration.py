r"""每个权重该往哪边舍入？先看看真的输入是什么样——校准 (calibration)。

直接取整只看权重自己。可要紧的是输出：一层的输出差多少，还要看它的输入。拿一小段真的文本走一遍，
每个线性层记下两样，别的都不留：

$$H = \frac{1}{n}\sum_t x_t x_t^\top \in \mathbb{R}^{K\times K}, \qquad
  a_k = \frac{1}{n}\sum_t |x_{t,k}|$$

H 之后一个输入也不用留：任何一种舍入的输出误差都算得出来，δ = W − Ŵ，

$$\frac{1}{n}\sum_t \lVert x_t W^\top - x_t \hat W^\top \rVert^2
  = \mathrm{tr}\!\left(\delta\,H\,\delta^\top\right)
  \qquad\text{（H 就是它的二阶导数的一半，所以叫 Hessian）}$$

对角线 H_kk 是第 k 维的大小，非对角线是两维一起变的程度：
两维总是同进同退，一维的误差就能由另一维补上。

    ids ──词嵌入──► x₀ ──块 0──► x₁ ──块 1──► x₂ …      一块一块地走
                       │  ┌────────────────────┐
                       └─►│ ① q、k、v 看到的 x  │        每块里又分几站 (stage)：
                          │ ② out_proj 看到的   │        同一站的几层看的是同一个 x，共用一份 H；
                          │ ③ up、gate 看到的   │        前一站换成整数之后，后一站才量，
                          │ ④ down_proj 看到的  │        于是它看到的输入里已经带着前面的误差
                          └────────────────────┘

为什么一块一块地走：同时只有一块的 H 在内存里；K = 3072 时一份就是 75 MB（float64）。
为什么带着误差量：推理时后面的层看到的正是它；拿没有误差的输入去校准，误差就一层层地攒下来。

看一站，要把这一块走一遍（用前向钩子，forward hook，截下输入）；换完一站再走下一站。一块四站，加上
最后算出下一块的输入，一共五遍：比只走一遍慢五倍，但后面的站看得到前面的误差。

一个数一个数地看（K = 2，三个词元）：
    x = [1, 2]、[3, 0]、[2, 2]      H = [[14, 6], [6, 8]] / 3，a = [2, 4/3]
    δ = [0.1, −0.1]                 δHδᵀ = (0.14 − 2·0.06 + 0.08) / 3 = 0.0333
    直接算                          (−0.1)² + 0.3² + 0² = 0.10，除以 3，一样

常见疑问：
    要多少文本？       几万个词元就够：H 是平均，再多也不怎么变。要像将来真的输入：语言、文体相近。
    校准集会过拟合吗？ 会一点：K 维的 H 要远多于 K 个词元才量得准；词元太少，宁可直接取整。

论文：Frantar & Alistarh 2022, Optimal Brain Compression, arXiv:2208.11580
改哪里：多记一样（例如最大值）→ `InputStatistics`；块里分几站 → `stages_of`，它是走一遍看出来的。
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from foundation.checks import check_int
from foundation.demonstration import run_demo
from gpt_model.config import preset
from gpt_model.model import GPT

__all__ = ["BlockInput", "InputStatistics", "advance", "calibration_windows", "collect"]
__all__ = [*__all__, "first_block_inputs", "output_errors", "relative_error", "stages_of"]

# 一块的输入：残差流 x，与同一次前向里各块都一样的那几样（位置、掩码）
BlockInput = tuple[Tensor, dict[str, Any]]


@dataclass
class InputStatistics:
    """一层的输入：H (K, K) 与 a (K,)，都是对词元的平均；在 CPU 上，float64。

    为什么 float64：H 要求逆，相关的维让它接近奇异，float32 的舍入会被放大
    """

    hessian: Tensor
    mean_abs: Tensor
    n_tokens: int

    @classmethod
    def empty(cls, columns: int) -> InputStatistics:
        """还没有看过任何词元。"""
        # 一块一块地走，同时只有一站的这一份
        zeros = torch.zeros(columns, columns, dtype=torch.float64)
        return cls(zeros, torch.zeros(columns, dtype=torch.float64), 0)

    def add(self, x: Tensor) -> None:
        """再看一批：x (…, K)；平均随时都是对的，不必最后再除。

        公式：H ← H·n/(n+m) + XᵀX/(n+m)，m 是这一批的词元数
        """
        # 半精度的也在 float32 里乘
        flat = x.detach().reshape(-1, x.shape[-1]).float()  # (m, K)
        total = self.n_tokens + len(flat)
        # 乘法在原来的设备上做，只搬 (K, K) 的结果
        product, sizes = flat.t() @ flat, flat.abs().sum(dim=0)
        self.hessian.mul_(self.n_tokens / total).add_(product.cpu().double() / total)
        self.mean_abs.mul_(self.n_tokens / total).add_(sizes.cpu().double() / total)
        self.n_tokens = total

    def divided(self, scale: Tensor) -> InputStatistics:
        """输入的每一维除以 s 之后的统计：H / (s sᵀ)，a / s。"""
        # AWQ 把输入缩小、权重放大，统计也要跟着变
        scale = scale.double()
        hessian = self.hessian / torch.outer(scale, scale)
        return InputStatistics(hessian, self.mean_abs / scale, self.n_tokens)


def output_errors(weight: Tensor, restored: Tensor, statistics: InputStatistics) -> Tensor:
    """每个输出的均方误差：δ_i H δ_iᵀ。

    形状：两个 (N, K) → (N,) float64；要整层的，加起来
    """
    change = (weight.detach().cpu() - restored.detach().cpu()).double()
    return ((change @ statistics.hessian) * change).sum(dim=1)


def relative_error(weight: Tensor, restored: Tensor, statistics: InputStatistics) -> float:
    """一层的输出差几成：√(tr δHδᵀ / tr WHWᵀ)；输入全是零的层，说 0。"""
    # 与「全舍成零」的误差比：1 就是什么也没剩下
    wrong = output_errors(weight, restored, statistics).sum()
    whole = output_errors(weight, torch.zeros_like(weight), statistics).sum()
    return float((wrong / whole).clamp_min(0.0).sqrt()) if whole > 0 else 0.0


def calibration_windows(tokens: Sequence[int] | Tensor, n_windows: int, length: int) -> Tensor:
    """从一串词元里均匀地取几段：→ (n, length)；短文本就少取几段，彼此不重叠。

    为什么均匀而不随机：整篇都照顾到，而且每次都一样
    错误：不够一段 → ValueError，两个数都说
    """
    check_int("n_windows", n_windows, 1)
    check_int("length", length, 1)
    tokens = torch.as_tensor(tokens, dtype=torch.int64)
    # 不补齐：补的词元会混进平均里
    if len(tokens) < length:
        raise ValueError(
            f"calibration needs at least one window of {length} tokens, the text has {len(tokens)}"
        )
    # 第一段从头，最后一段到尾，其余等距
    n_windows = min(n_windows, len(tokens) // length)
    last = len(tokens) - length
    starts = [last * i // max(1, n_windows - 1) for i in range(n_windows)]
    return torch.stack([tokens[start : start + length] for start in starts])


@torch.no_grad()
def first_block_inputs(model: GPT, ids: Tensor, batch_size: int = 8) -> list[BlockInput]:
    """走一遍模型，把第一块的输入截下来：词嵌入、位置、掩码都由模型自己准备。

    形状：ids (n, T) → 每批一份 (x (B, T, D), 其余的参数)
    """
    kept: list[BlockInput] = []

    def keep(_: nn.Module, positional: Any, named: dict[str, Any]) -> None:
        """第一块被调用之前：记下它收到的。"""
        kept.append((positional[0], named))

    # 带上按名字传的：位置与掩码都是这样传的
    handle = model.blocks[0].register_forward_pre_hook(keep, with_kwargs=True)
    try:
        # 后面的块白算一遍，只为了不重复模型自己的准备
        for batch in torch.split(ids, batch_size):
            model(batch.to(model.device), last_only=True)
    finally:
        handle.remove()
    return kept


@torch.no_grad()
def stages_of(block: nn.Module, example: BlockInput) -> list[list[str]]:
    """块里的线性层按先后分站：看同一个张量的几层是一站。

    走一遍看出来的，所以不必知道块里有什么：
    [[q_proj, k_proj, v_proj], [out_proj], [up_proj, gate_proj], [down_proj]]
    """
    seen: list[tuple[Tensor, list[str]]] = []

    def watch(name: str) -> Any:
        """这一层被调用时：它的输入见过没有？"""

        def hook(_: nn.Module, positional: Any) -> None:
            # 留着张量本身，地址就不会被别人重用
            for x, names in seen:
                if x is positional[0]:
                    names.append(name)
                    return
            seen.append((positional[0], [name]))

        return hook

    # 每层挂一个，走一遍，全摘掉
    layers = {name: m for name, m in block.named_modules() if isinstance(m, nn.Linear)}
    handles = [m.register_forward_pre_hook(watch(name)) for name, m in layers.items()]
    try:
        # 只走一批：看的是结构，不是数
        run_block(block, example)
    finally:
        for handle in handles:
            handle.remove()
    return [names for _, names in seen]


@torch.no_grad()
def collect(
    block: nn.Module, names: Sequence[str], inputs: Sequence[BlockInput]
) -> InputStatistics:
    """同一站的几层看到的输入；它们看的是同一个，所以只记第一层的。

    错误：输入里有 NaN 或无穷大 → ValueError：模型坏了，校准不出什么
    """
    # 量过的层也许马上就换掉，所以钩子用完就摘
    layer = block.get_submodule(names[0])
    assert isinstance(layer, nn.Linear)
    statistics = InputStatistics.empty(layer.in_features)

    def note(_: nn.Module, positional: Any) -> None:
        """每批调用一次。"""
        statistics.add(positional[0])

    handle = layer.register_forward_pre_hook(note)
    try:
        for one in inputs:
            run_block(block, one)
    finally:
        handle.remove()
    # 坏掉的输入会让分解失败，在这里说是哪一层
    if not torch.isfinite(statistics.hessian).all():
        raise ValueError(f"{names[0]}: its inputs hold NaN or infinite values")
    return statistics


@torch.no_grad()
def advance(block: nn.Module, inputs: Sequence[BlockInput]) -> list[BlockInput]:
    """这一块的输出，就是下一块的输入。

    位置与掩码各块都一样，原样传下去
    """
    return [(run_block(block, one), one[1]) for one in inputs]


def run_block(block: nn.Module, one: BlockInput) -> Tensor:
    """走一块，不用缓存。

    没有缓存，一批里的各个位置一次算完
    """
    output: Tensor = block(one[0], **{**one[1], "cache": None})
    return output


def the_hessian_is_enough() -> None:
    """有了 H，不用再看输入：tr(δHδᵀ) 就是输出的均方误差。"""
    # 各维相关的输入，稍微改动的权重
    x, weight = torch.randn(500, 16) @ torch.randn(16, 16), torch.randn(8, 16)
    wrong = weight + 0.1 * torch.randn(8, 16)
    statistics = InputStatistics.empty(16)
    # 分两批看，与一次看完一样
    for batch in torch.split(x, [100, 400]):
        statistics.add(batch)
    # 一边用 H，一边真的去乘，
    # 两个数应当一样
    found = float(output_errors(weight, wrong, statistics).sum())
    wanted = float((x @ (weight - wrong).t()).square().sum(dim=1).mean())
    print(f"① 输出的均方误差：直接算 {wanted:.6f}，tr(δHδᵀ) {found:.6f}")
    assert abs(found - wanted) < 1e-4 * wanted


def walking_through_the_blocks() -> None:
    """一块块地走：分几站，各站的输入有多大，走完与整个模型一样。"""
    torch.manual_seed(0)
    config = preset("gpt-micro", vocab_size=65, dim=64, n_layers=2, n_heads=2)
    model = GPT(config.replace(gated_ffn=True, activation="silu")).eval()
    # 随机的词元：这里只看走法，
    # 门控的前馈有三个矩阵
    ids = calibration_windows(torch.randint(65, (5000,)), 16, 64)
    inputs = first_block_inputs(model, ids)
    print(f"② {tuple(ids.shape)} 个词元，{len(inputs)} 批；每块分几站：")
    for number, block in enumerate(model.blocks):
        for names in stages_of(block, inputs[0]):
            statistics = collect(block, names, inputs)
            # 对角线是各维的均方
            size = float(statistics.hessian.diagonal().mean().sqrt())
            # 各块一样，只打印第一块
            if number == 0:
                short = "、".join(name.rpartition(".")[2] for name in names)
                print(f"   {short:<24} H {tuple(statistics.hessian.shape)}，每维约 {size:.3f}")
        inputs = advance(block, inputs)
    # 走完各块，再归一化、打分，就是模型自己算的
    logits = model.lm_head(model.final_norm(torch.cat([x for x, _ in inputs])))
    gap = float((logits - model(ids).logits).abs().max())
    print(f"③ 一块块走完，与整个模型的 logits 相差 {gap:.0e}")
    assert gap < 1e-5


@torch.no_grad()
def demo() -> None:
    """H 够不够用，怎样一块块地走。"""
    the_hessian_is_enough()
    walking_through_the_blocks()


if __name__ == "__main__":
    run_demo(demo)
