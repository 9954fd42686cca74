r"""LoRA 的一步，时间与内存花在哪里？——冻结的那一大半不必转、不必存梯度，细的那两条合成一次。

一层的公式，s 是缩放；W 冻结，要学的只有 A、B：

$$y = xW^\top + s\,(xA)B + b$$

照着公式一个算子一个算子地写，autograd 会做许多用不着的事。量一量就知道多在哪里：

    照公式写                              合起来写
    ────────────────────────────────────  ──────────────────────────────────────────────
    x 转成 bf16：W 一次、A 一次           转一次，两边共用，也只存这一份
    W 每次前向、反向各从 float32 转一遍   冻结的：训练前转好，只留 bf16 的一份
    (xA)B 写成一张 (…, d_out)，再加上去   乘法直接加在 xWᵀ 上 (addmm)，没有那一张
    q、k、v 各乘各的                      叠成一个大矩阵，一次乘完（同 linear.py）
    冻结的偏置也求了和                    不求

反向推到底也只有三个大小不等的乘法；大的只有一个，它本来就省不掉：

$$G = \tfrac{\partial L}{\partial y}, \quad H = s\,G B^\top\ (M, r), \qquad
  \frac{\partial L}{\partial x} = G W + H A^\top, \quad
  \frac{\partial L}{\partial A} = x^\top H, \quad
  \frac{\partial L}{\partial B} = s\,(xA)^\top G$$

    全量微调   前向 2·M·d²   ∂x 2·M·d²   ∂W 2·M·d²
    LoRA       前向 2·M·d²   ∂x 2·M·d²   细的 ≈ 8·M·d·r        少三分之一，r ≪ d 时细的不计

冻结的底座存几份？混合精度里权重本来存 float32，因为 bf16 加不上很小的改动；冻结的权重没有改动，
float32 的那一份只是摆着。halve_frozen 把它们换成 bf16：乘法本来就用 bf16，一个比特也没有变。
词嵌入若与 lm_head 共用，也一并换；残差一路仍是 float32，见 GPT._embed。

什么时候没有用：float32 训练（没有转换可省）、GPU、torch.compile、DoRA 与 dropout（公式不同）、
四比特的底座（它自己还原）：都走 lora.py 里照公式写的那条路，结果相同，测试逐一对照。

论文：Hu et al. 2021, LoRA；Micikevicius et al. 2018, Mixed Precision Training, arXiv:1710.03740
改哪里：什么情形走这条路 → `usable`；哪些权重换成 bf16 → `halve_frozen`；
        量一量 → benchmarks/lora_step.py。
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from foundation.demonstration import run_demo
from transformer_basics.linear import Linear, fits, mixed_precision_here, product, stacked

__all__ = ["halve_frozen", "lora_products", "usable"]

# 一层要交的：冻结的线性层、A (d_in, r)、B (r, d_out)、缩放
Part = tuple[nn.Linear, Tensor, Tensor, float]


def usable(x: Tensor, base: nn.Module) -> bool:
    """这一层能不能走合起来的路：CPU 上 bf16 混合精度，底座是冻结的普通线性层。

    x 是这一层的输入；只看类型与状态，不碰数据
    """
    # 子类可能改了算法，只认这两个
    if type(base) not in (Linear, nn.Linear) or not mixed_precision_here(x):
        return False
    assert isinstance(base, nn.Linear)
    return fits(base.weight) and frozen(base)


def frozen(base: nn.Module) -> bool:
    """权重与偏置都不训练；要训练的，反向里就少了一个乘法。"""
    return not any(parameter.requires_grad for parameter in base.parameters())


class _LoRAProducts(torch.autograd.Function):
    """几个同输入、各带适配器的层一起算。

    形状：x (…, K)，第 i 层 W (Nᵢ, K)、A (K, rᵢ)、B (rᵢ, Nᵢ) → 各 (…, Nᵢ)
    类型：乘法用 bf16（核里以 float32 累加），A、B 的梯度交出 float32，与 autocast 相同
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, layers: Sequence[nn.Linear], scales: Sequence[float], *thin: Tensor
    ) -> Any:
        # thin 是先全部的 A，再全部的 B：反向时照此排梯度
        count = len(layers)
        downs, ups = thin[:count], thin[count:]
        # ① x 只转一次；各层的 W 叠成一个大矩阵，各层的 A 并排，也是一个
        half = x.to(torch.bfloat16)
        flat = half.reshape(-1, half.shape[-1])  # (M, K)
        weights = [layer.weight for layer in layers]
        output = product(flat, stacked(weights).t())  # (M, ΣN)
        low = flat @ side_by_side(downs)  # (M, Σr)
        # ② 细的那一路直接加进各自的列，不另写一张 (M, N)
        ctx.sizes, ctx.ranks = [len(w) for w in weights], [b.shape[0] for b in ups]
        # 都是视图：写进某一层的几列，就写进了那张大的
        parts = torch.split(output.view(*x.shape[:-1], -1), ctx.sizes, dim=-1)
        columns = torch.split(output, ctx.sizes, dim=1)
        lows = torch.split(low, ctx.ranks, dim=1)
        for layer, column, thin_low, up, scale in zip(
            layers, columns, lows, ups, scales, strict=True
        ):
            column.addmm_(thin_low, up.to(torch.bfloat16), alpha=scale)
            if layer.bias is not None:
                column += layer.bias.to(torch.bfloat16)
        # ③ 存：x 的一份、细的几样；W 只存引用
        ctx.scales, ctx.input_dtype = scales, x.dtype
        ctx.save_for_backward(flat, low, *weights, *thin)
        return tuple(parts) if count > 1 else parts[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        count = len(ctx.sizes)
        flat, low, *rest = ctx.saved_tensors
        weights, downs, ups = rest[:count], rest[count : 2 * count], rest[2 * count :]
        flats = [g.reshape(-1, g.shape[-1]) for g in gradients]  # 各 (M, N)
        # ④ 细的：H = s·G·Bᵀ，∂B = s·(xA)ᵀG；各层各自的
        #    缩放乘在 (M, r) 上，比乘在 (M, N) 上省
        highs, grad_ups = [], []
        for slope, thin_low, up, scale in zip(
            flats, torch.split(low, ctx.ranks, dim=1), ups, ctx.scales, strict=True
        ):
            highs.append((slope @ up.to(torch.bfloat16).t()).mul_(scale))  # (M, r)
            grad_ups.append((thin_low.t() @ slope).float().mul_(scale))  # (r, N)
        high = side_by_side(highs)  # (M, Σr)
        grad_downs = [part.float() for part in torch.split(flat.t() @ high, ctx.ranks, 1)]
        #    ∂A 一次算完：各层看的是同一个 x
        # ⑤ 大的只有这一个；第一块的输入是词嵌入，冻结着，连它也不必算
        grad_x: Tensor | None = None
        if ctx.needs_input_grad[0]:
            slope = flats[0] if count == 1 else torch.cat(flats, dim=1)
            # 各层的贡献相加，正是并排的矩阵相乘；细的那一路再加上去
            wide = product(slope, stacked(weights))  # (M, K)
            wide.addmm_(high, side_by_side(downs).t())
            grad_x = wide.view(*gradients[0].shape[:-1], -1).to(ctx.input_dtype)
        return grad_x, None, None, *grad_downs, *grad_ups


def side_by_side(columns: Sequence[Tensor]) -> Tensor:
    """几个细条转成 bf16，左右并排；只有一个时不拼接。

    形状：各 (K, rᵢ) → (K, Σr)
    """
    half = [column.to(torch.bfloat16) for column in columns]
    return half[0] if len(half) == 1 else torch.cat(half, dim=1)


def lora_products(x: Tensor, parts: Sequence[Part]) -> list[Tensor]:
    """几层同看一个 x，各带一个适配器：各层的 y。调用者已经问过 usable。

    形状：x (…, K) → 各 (…, Nᵢ)，bf16
    """
    layers, downs, ups, scales = zip(*parts, strict=True)
    found: Any = _LoRAProducts.apply(x, layers, scales, *downs, *ups)  # type: ignore[no-untyped-call]
    return list(found) if len(parts) > 1 else [found]


@torch.no_grad()
def halve_frozen(model: nn.Module) -> nn.Module:
    """就地把冻结的矩阵（线性层、词嵌入）换成 bf16，返回同一个模型。

    为什么安全：冻结的不更新，就用不着 float32 的精度；乘法本来就在 bf16 里做
    一维的（归一化、偏置）不动：小，而且归一化在 float32 里算
    要合并成普通模型时，请从文件里重读底座：这里舍入掉的，不该写进新的权重
    """
    for module in model.modules():
        # 装了适配器的层，里面的底座也是线性层，照样走到
        if not isinstance(module, (nn.Linear, nn.Embedding)):
            continue
        weight = module.weight
        if not weight.requires_grad and weight.dtype is torch.float32:
            # 换的是参数里的数，不是参数：与词嵌入共用的 lm_head 仍是同一个
            weight.data = weight.data.to(torch.bfloat16)
    return model


def demo() -> None:
    """与照公式写的比输出与梯度，再数为反向存了多少字节、底座占多少。"""
    from finetuning.lora import LoRAConfig, apply_lora, lora_parameters
    from gpt_model.config import preset
    from gpt_model.model import GPT
    from transformer_basics.speed_ups import without

    torch.manual_seed(0)
    # 六种线性层都装上：叠着算的与单个的都走到
    names = ("q_proj", "k_proj", "v_proj", "out_proj", "up_proj", "down_proj")
    model = GPT(preset("gpt-micro", vocab_size=65, dim=128, n_layers=2))
    apply_lora(model, LoRAConfig(r=4, target=names))
    # 只量训练的一步，不更新
    for parameter in lora_parameters(model):
        nn.init.normal_(parameter, std=0.1)  # 假装训练过：B = 0 时看不出对错
    ids = torch.randint(65, (4, 65))

    def step(*off: str, half: bool = True) -> tuple[list[Tensor], int]:
        """一次前向反向：全部梯度接在损失后面，与存下的字节数。"""
        kept: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            """autograd 要存一个张量时叫它；参数本来就在，不算。"""
            if not isinstance(tensor, nn.Parameter):
                kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with (
            without(*off),
            torch.autocast("cpu", torch.bfloat16, enabled=half),
            torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        ):
            loss = model(ids[:, :-1], ids[:, 1:], need_logits=False).loss
        assert loss is not None
        gradients = torch.autograd.grad(loss, lora_parameters(model))
        return [loss.detach(), *gradients], sum(kept.values())

    # 标准答案：float32，照公式
    exact, _ = step(half=False)
    print("① 与 float32 的公式比（损失，和全部梯度里最大的相对误差）")
    sizes = []
    for name, off in (("照公式写", ("written",)), ("合起来写", ())):
        found, size = step(*off)
        sizes.append(size)
        errors = [float((a - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)]
        print(
            f"   {name}  损失差 {errors[0]:.5f}  梯度差 {max(errors):.3f}  存 {size / 1e6:.1f} MB"
        )
        # 都是 bf16 的舍入，同一个量级
        assert max(errors) < 0.1
    # 没有那张 (M, d_out)，x 也只存一份
    assert sizes[1] < sizes[0]

    # 底座换成 bf16：一个比特也不该变，因为乘法本来就转成它
    print("② 底座只留 bf16 的一份")

    def base_bytes() -> int:
        """冻结的参数一共多少字节。"""
        return sum(p.nbytes for p in model.parameters() if not p.requires_grad)

    before, size = step()[0], base_bytes()
    halve_frozen(model)
    after = step()[0]
    gap = max(float((a - b).norm() / b.norm()) for a, b in zip(after, before, strict=True))
    print(f"   {size:,} → {base_bytes():,} 字节；损失与梯度最多差 {gap:.4f}（词嵌入舍入了一次）")
    # 归一化、偏置、位置表没有换，所以比一半略多
    assert base_bytes() < 0.6 * size
    assert gap < 0.1


if __name__ == "__main__":
    run_demo(demo)
