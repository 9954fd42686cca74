r"""激活占满了内存，怎样用时间去换？——只存路标，反向时再算一遍（gradient checkpointing）。

反向要用前向的中间结果：每层、每个词元几十倍于 D 个数，L 层全要留到反向。可是它们都能从这一层的
输入重新算出来。于是前向只留输入，反向走到这一层时再前向一遍，用完就扔：

    不重算    存 ■■■■■■ ■■■■■■ ■■■■■■ ■■■■■■      L·a
    重算块    存 □      □      □      □           L·x + a（正在反向的那一层）
    选着重算  存 ■■■    ■■■    ■■■    ■■■         去掉「大而便宜」的，留下矩阵乘法的结果

$$\text{内存：} L\,a \;\to\; L\,x + a \qquad
  \text{时间：} 1 + 2 \;\to\; 1 + 1 + 2 \;=\; \tfrac{4}{3}\ \text{倍}$$

（前向算 1 份，反向是它的两倍；重算等于多一次前向。a 是一层的全部激活，x 是一层的输入。）

「大而便宜」的有两样：注意力的权重（B·H·T² 个数，由 q、k 一次乘法就得到），前馈激活之后的那
一份（B·T·4D 个数，逐元素就得到）。只重算这两样，省下约一半，时间只多一点点。

随机失活（dropout）也要重现：前向时记下随机数的状态，重算前放回去，丢的才是同样的位置。

什么时候没有用：内存够用时——白多花时间；参数比激活大得多时（批很小）——省的是小头。

论文：Chen 等 2016《Sublinear Memory Cost》(arXiv:1604.06174)；
     Korthikanti 等 2022《Selective Recomputation》(arXiv:2205.05198)

改哪里：
  · 想多重算或少重算一样——在那一处用 recompute(函数, 参数…) 包起来，由模块的 recompute 属性控制。
  · 整个模型怎样切换 → GPT.use_checkpointing；省多少内存的公式 → gpt_model/memory.py。
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from foundation.checks import check_choice
from foundation.demonstration import run_demo

__all__ = ["KINDS", "recompute", "use_checkpointing"]

# 不重算；只重算大而便宜的；整块重算
KINDS = ("none", "selective", "block")


def recompute(function: Callable[..., Tensor], *arguments: Any, **named: Any) -> Tensor:
    """算 function(…)，但不为反向留中间结果；反向走到这里时再算一遍。

    约定：function 只看它的参数与模型的权重；算两遍必须得到同样的数（dropout 的随机数会放回）
    约定：不求导时就是直接算
    """
    if not torch.is_grad_enabled():
        return function(*arguments, **named)
    # use_reentrant=False：重算时一够用就停（early stop），也能与 autocast、钩子一起用
    result: Tensor = checkpoint(function, *arguments, use_reentrant=False, **named)
    return result


def use_checkpointing(model: nn.Module, kind: str) -> None:
    """给模型里的每个块定下：不重算、选着重算、还是整块重算。

    公式：block 存 L·x + a；selective 存 L·(a − 注意力权重 − 激活之后的一份)
    错误：kind 不认识、模型里没有能重算的模块 → ValueError
    """
    check_choice("gradient_checkpointing", kind, KINDS)
    # 块归 "block" 管，注意力与前馈归 "selective" 管，写在各自的 recompute_level 里；
    # 装了 LoRA、量化过的模型里也有这些模块，所以照样能用
    found = [module for module in model.modules() if hasattr(module, "recompute_level")]
    if not found and kind != "none":
        raise ValueError(
            f"gradient_checkpointing {kind!r} needs a model of Transformer blocks, "
            f"got {type(model).__name__}"
        )
    for module in found:
        # 整块重算时，里面的不必再重算一层：算两遍就成了三遍
        module.recompute = module.recompute_level == kind  # type: ignore[assignment]


def kept_bytes(compute: Callable[[], Tensor]) -> tuple[Tensor, int]:
    """算一遍，数一数为反向存了多少字节；权重本来就在，不算。"""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        """autograd 要存一个张量时叫它；几处存的是同一块内存，只算一次。"""
        if not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    # 前向每存一个张量就叫一次 note；取用时原样返回
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = compute()
    return result, sum(kept.values())


def demo() -> None:
    """六个块，三种办法：梯度逐比特相同，存的字节与花的时间各是多少。"""
    import time

    # 到用时才导入：这两页要用本页的 recompute
    from transformer_basics.attention import CausalSelfAttention
    from transformer_basics.layers import FeedForward, LayerNorm, TransformerBlock

    # 批大、层多、宽度小：激活比权重大得多，正是用得着它的时候
    dim, depth = 128, 6
    torch.manual_seed(0)
    # 带 dropout：重算时丢的若不是同样的位置，梯度就对不上
    parts = [
        (CausalSelfAttention(dim, 4, dropout=0.1), FeedForward(dim, 512)) for _ in range(depth)
    ]
    blocks = nn.Sequential(
        *(TransformerBlock(a, f, LayerNorm(dim), LayerNorm(dim), dropout=0.1) for a, f in parts)
    )
    x = torch.randn(8, 128, dim)  # (B, T, D)
    gradients, sizes = {}, {}  # 办法 → 全部梯度；办法 → 字节
    print(f"{depth} 个块，8×128 个词元，宽 {dim}：")
    for kind in KINDS:
        use_checkpointing(blocks, kind)
        seconds = []
        # 第一遍热身，取快的一遍
        for _ in range(3):
            torch.manual_seed(1)  # 同样的 dropout
            blocks.zero_grad()
            began = time.perf_counter()
            out, sizes[kind] = kept_bytes(lambda: blocks(x).square().mean())
            out.backward()
            seconds.append(time.perf_counter() - began)
        gradients[kind] = [p.grad for p in blocks.parameters() if p.grad is not None]
        print(f"  {kind:9s}  存 {sizes[kind] / 1e6:6.2f} MB   {1e3 * min(seconds):6.1f} 毫秒")
    # 算的是同样的算子、同样的数，所以不是接近，是相同
    for kind in KINDS[1:]:
        assert all(map(torch.equal, gradients["none"], gradients[kind]))
    print("  三种办法的梯度逐比特相同")
    # 整块重算只留每块的输入（与随机数的状态）
    inputs = depth * x.numel() * 4
    print(f"  每块的输入共 {inputs / 1e6:.2f} MB，与 block 那一行相当")
    assert sizes["block"] < 1.2 * inputs
    assert sizes["block"] < sizes["selective"] < 0.8 * sizes["none"]


if __name__ == "__main__":
    run_demo(demo)
