r"""训练开始之前，权重该是多大？太小信号消失，太大信号爆炸，深了尤其如此。

GPT-2 的办法只有三条：

    权重    W ~ N(0, σ²)，σ = 0.02
    偏置    0
    写回残差的投影（out_proj、down_proj）    σ / √(2L)

第三条为什么？残差流（residual stream）是一条直路，每个块往上加两次：

    x ── + ── + ── + ── … ── +     共 2L 次
         │    │    │         │
        注意力 前馈 注意力    前馈

独立的随机数相加，方差相加：每次加上的方差若是 v，走完全程涨了 2L·v。
把每次写回的标准差除以 √(2L)，总共只涨 v，与层数无关：48 层的模型一开始和 4 层的一样平稳。

σ = 0.02 又从哪来？大约是 1/√D（D = 1600 时 0.025），让 x·W 的大小与 x 相当。

更进一步：写回残差的投影干脆从 0 开始（zero_init）。每个块一开始什么也不加，整个模型只是
「词向量 → 归一化 → 打分」，然后各块从无到有地长出来；开头的损失降得更快。从 0 开始学得动吗？
学得动：W_out 的梯度是「支路的输出 × 上面传来的梯度」，支路里别的矩阵不是 0，它就不是 0。

论文：GPT-2, Radford et al. 2019, 2.3 节；Xavier, Glorot & Bengio 2010；
      从 0 开始的支路 — Bachlechner et al., *ReZero*, arXiv:2003.04887。

改哪里：别的初始化（muP）→ initialize_weights；σ → GPTConfig.init_std。
"""

from __future__ import annotations

import math

import torch
from torch import nn

from foundation.demonstration import run_demo
from transformer_basics.embeddings import LearnedPositions, TokenEmbedding

__all__ = ["initialize_weights"]

# 这两个投影的输出直接加到残差上：
# 一个收拢注意力的各个头，一个把前馈收窄回 D 维
WRITES_TO_RESIDUAL = ("out_proj", "down_proj")


@torch.no_grad()
def initialize_weights(
    model: nn.Module, std: float, n_layers: int, *, zero_residual: bool = False
) -> None:
    """按 GPT-2 的方法就地初始化；归一化的权重建好时已经是 1，不动它。

    公式：W ~ N(0, σ²)，b = 0；写回残差的投影 W ~ N(0, σ² / 2L)，zero_residual 时 W = 0
    类型：不改变 dtype 与 device；meta 设备上没有值可写，调用什么也不做
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            # 按名字认出写回残差的投影：它们在块里的位置决定了作用，与形状无关
            to_residual = name.endswith(WRITES_TO_RESIDUAL)
            scale = math.sqrt(2 * n_layers) if to_residual else 1.0
            if to_residual and zero_residual:
                nn.init.zeros_(module.weight)
            else:
                nn.init.normal_(module.weight, std=std / scale)
            if module.bias is not None:
                nn.init.zeros_(module.bias)  # 一开始不偏向任何一边
        elif isinstance(module, (TokenEmbedding, LearnedPositions)):
            # lm_head 与词向量共用时，这里最后一次写入，两者仍是同一个矩阵
            nn.init.normal_(module.weight, std=std)


def residual_growth(n_layers: int, *, scaled: bool) -> list[float]:
    """建一个随机的 GPT，量残差流在每个块之后的标准差（第一个数是进入第一块之前）。"""
    from gpt_model.config import preset  # 只有演示才需要整个模型
    from gpt_model.model import GPT

    # 建好时写回残差的投影已经缩小过
    model = GPT(preset("gpt-micro", n_layers=n_layers, init_std=0.1, max_seq_len=32))
    if not scaled:
        # 把写回残差的投影改回 σ，其余不动
        for name, module in model.named_modules():
            if name.endswith(WRITES_TO_RESIDUAL) and isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.1)
    # 在每个块的出口挂一个钩子（hook），前向时顺手记下大小
    sizes: list[float] = []
    for block in model.blocks:
        block.register_forward_hook(lambda _m, _i, output: sizes.append(output.std().item()))
    # 进入第一块之前也量一次，作为起点
    first = model.blocks[0]
    first.register_forward_pre_hook(lambda _m, inputs: sizes.append(inputs[0].std().item()))
    with torch.no_grad():
        model.eval()(torch.randint(2048, (4, 32)))
    return sizes


def demo() -> None:
    """24 层，缩小与不缩小写回残差的投影，看残差流怎样变大。"""
    # σ 取 0.1 而不是 0.02：每次写入的量大一些，累积看得更清楚
    print("残差流的标准差（24 层，σ = 0.1 以便看清）：")
    print("  经过的块数        0      6     12     18     24")
    growth = {}  # 是否缩小 → 逐块的大小
    for scaled in (False, True):
        torch.manual_seed(0)
        sizes = growth[scaled] = residual_growth(24, scaled=scaled)
        name = "除以 √(2L)" if scaled else "不缩小    "
        print(f"  {name}  " + " ".join(f"{sizes[i]:6.2f}" for i in (0, 6, 12, 18, 24)))
    # 独立的量相加，方差成正比于个数，标准差成正比于个数的平方根
    assert growth[False][24] > 4 * growth[True][24]
    ratio = growth[False][24] / growth[False][6]
    print(f"\n不缩小时，24 块与 6 块之比 {ratio:.2f}，接近 √(24/6) = 2：方差确实是一份份加上去的")
    assert abs(ratio - 2) < 0.3
    print(f"缩小之后，走完 24 块只是原来的 {growth[True][24] / growth[True][0]:.1f} 倍")


if __name__ == "__main__":
    run_demo(demo)
