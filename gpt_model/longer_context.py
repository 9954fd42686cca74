r"""训练时只看 L 个词元的模型，打开时想让它看 C 个，改什么？——不改一个权重，只改位置怎么转。

旋转位置（RoPE）没有参数：角度由频率与位置算出，所以换一套频率就换了一种读法。拉长的倍数是

$$s = \max(1,\; C / L)$$

    GPT（L = 128）──extend_context(model, 512, "yarn")──▶ 同一个 GPT（C = 512，频率按 yarn，s = 4）
                    配置：max_seq_len、rope_scaling
                    旋转：一张新的表，各层共用

    kind      怎样看更长的                                           代价
    none      照原来的频率一直往后转                                 转到没见过的角度
    linear    位置全部除以 s                                         近处的次序也变模糊
    ntk       换更大的底：慢的慢 s 倍，快的几乎不动                  中间的两头不靠
    dynamic   同 ntk，训练长度之内一点不动                           长度变了，频率就变
    yarn      按训练中转过的圈数分段，外加一点温度                   要知道 L
    llama3    也按圈数分段（Llama 3.1 的取法）                       要知道 L

位置的拉长只让模型「看得见」，不保证「看得懂」：每一种在自己的模型上实际怎样，
evaluation/needle.py 与 benchmarks/long_context.py 一种一种地量。

已经拉长过的模型再拉，L 仍是当初训练的长度（rope_scaling.original_max_seq_len），倍数不会叠两层；
同一种方法，它自己的别的数（β、s）保留不动。

学出来的位置（GPT-2）只有 L 行，没有第 L + 1 行可查，所以不收；正弦的与不给位置的没有频率可拉，
只能用 none。

论文：Chen 等 2023 (arXiv:2306.15595) 说明了为什么不拉长就会失灵；各方法的出处见 rope_scaling.py。

改哪里：多一种拉长法 → rope_scaling.py 的 SCALINGS，这里与命令行立刻认得它。
"""

from __future__ import annotations

from dataclasses import replace

import torch

from foundation.checks import check_choice, check_int
from foundation.demonstration import run_demo
from gpt_model.building import build_rotary
from gpt_model.config import GPTConfig
from gpt_model.model import GPT
from transformer_basics.attention import CausalSelfAttention
from transformer_basics.embeddings import SinusoidalPositions
from transformer_basics.rope_scaling import SCALINGS, RopeScaling

__all__ = ["LONGER", "extend_context", "longer_config", "trained_length"]

# 命令行 --rope-scaling 收的名字
LONGER = ("none", *SCALINGS)


def trained_length(config: GPTConfig) -> int:
    """训练时看多长：拉长过的模型记在 rope_scaling 里，没拉长过的就是 max_seq_len。

    为什么要单记一份：拉长之后 max_seq_len 变了，再拉一次就不知道从哪里算倍数
    """
    # linear 与 ntk 不用它也能算，别人的 config.json 里可能没有写
    scaling = config.rope_scaling
    if scaling is None or scaling.original_max_seq_len is None:
        return config.max_seq_len
    return scaling.original_max_seq_len


def longer_config(config: GPTConfig, length: int, kind: str) -> GPTConfig:
    """看 length 个词元的同一份配置；只有 max_seq_len 与 rope_scaling 变了。

    检查在前，模型一点不动：命令行先问它，再载入权重
    公式：s = max(1, length/L)，L 见 trained_length；dynamic 的 s 不变，倍数由长度自己算出
    错误：名字不认识；位置是学出来的；没有频率可拉 → ValueError，写明给的值与可用的
    """
    check_choice("rope_scaling", kind, LONGER)
    check_int("context", length, 1)
    # ① 有没有第 length 行：学出来的位置是一张固定的表
    if config.position == "learned":
        raise ValueError(
            f"learned positions are a table of {config.max_seq_len} rows, so the context cannot be"
            f" changed to {length}; use a model with position 'rope', or sliding=True (--sliding)"
        )
    # ② 有没有频率可拉：正弦的与不给位置的，不经过旋转
    if config.position != "rope":
        if kind != "none":
            raise ValueError(
                f"rope_scaling {kind!r} needs position 'rope', got {config.position!r}"
            )
        return config.replace(max_seq_len=length)
    own, trained = config.rope_scaling, trained_length(config)
    factor = max(1.0, length / trained)
    # ③ 不拉长：倍数为 1 的 linear 与没有一样，但记下了 L，以后换一种方法还知道从哪里拉起
    if kind == "none":
        unscaled = None if length == trained else RopeScaling("linear", 1.0, trained).to_dict()
        return config.replace(max_seq_len=length, rope_scaling=unscaled)
    # ④ 同一种方法的别的数照旧；换一种方法，就用它的缺省值
    if own is None or own.kind != kind:
        own = RopeScaling(kind, 1.0, trained)
    # 记下 L：存进 config.json，下次打开还知道
    scaling = replace(own, original_max_seq_len=trained)
    # dynamic 的 factor 是「涨得多快」，不是倍数
    if kind != "dynamic":
        scaling = replace(scaling, factor=factor)
    return config.replace(max_seq_len=length, rope_scaling=scaling.to_dict())


def extend_context(model: GPT, length: int, kind: str) -> GPT:
    """就地换一套频率，返回同一个模型；权重一个也不动，所以随时可以换回来。

    约定：打开之前建的缓存不能再用：里面的键是按旧的频率转的
    错误：见 longer_config
    """
    # 缩短也行：dynamic 的倍数就跟着回到 1
    # 先查再改：出错时模型一点没动
    config = longer_config(model.config, length, kind)
    model.config = config
    # 频率只在用到时才算，换一张表不花时间
    # 各层共用一张旋转表：模型自己挂着一份，每层的注意力里也是同一份
    model.rotary = build_rotary(config)
    for module in model.modules():
        if isinstance(module, CausalSelfAttention):
            module.rotary = model.rotary
    # 正弦的是另一张表，照公式重填一张更长的
    if config.position == "sinusoidal":
        model.position_embedding = SinusoidalPositions(length, config.dim).to(
            device=model.device, dtype=model.dtype
        )
    return model


def demo() -> None:
    """同一个模型，每种方法各打开一遍：频率怎样变，训练长度之内还一不一样。"""
    from gpt_model.config import preset

    # 随机权重：这里看的是函数变没变，不是写得好不好
    config = preset("modern-micro", vocab_size=50, max_seq_len=64, n_layers=2, init_std=0.2)
    model = GPT(config).eval()
    # 四倍于训练长度的一段
    ids = torch.randint(50, (1, 256))
    with torch.no_grad():
        short = model(ids[:, :64]).logits
        print("训练长度 64，打开成 256（s = 4）；前 64 个位置的分数与原来的相差：")
        # 一种一种地打开；权重始终没有动，所以最后还能换回来
        gaps = {}
        for kind in LONGER:
            extend_context(model, 256, kind)
            gaps[kind] = float((model(ids[:, :64]).logits - short).abs().max())
            finite = bool(model(ids).logits.isfinite().all())
            print(f"   {kind:8} {gaps[kind]:.1e}　256 个词元都有分数：{finite}")
            assert finite
        # 这就是拉长的代价：为了看得更长，短文也换了一种读法
        # 没拉长的，短文不变；拉长了的，频率变了，短文也跟着变
        assert gaps["none"] < 1e-5 < min(gaps[kind] for kind in LONGER[1:])
        # dynamic 打开成训练长度，就是没有拉长：短文要紧时，用多长就打开多长
        extend_context(model, 64, "dynamic")
        gap = float((model(ids[:, :64]).logits - short).abs().max())
        print(f"dynamic 打开成 64，相差 {gap:.0e}：训练长度之内一点不动")
        assert gap < 1e-5
    # L 记在配置里，所以随便拉几次都算得回去
    # 拉长过的再拉长：倍数从训练长度算起，不叠两层
    twice = longer_config(longer_config(config, 128, "yarn"), 256, "yarn")
    assert twice.rope_scaling is not None
    print(f"先拉到 128 再拉到 256，倍数是 {twice.rope_scaling.factor:g}，不是 2 × 2 × …")
    assert twice == longer_config(config, 256, "yarn")
    # 没有第 L + 1 行可查：说清楚，而不是悄悄用最后一行顶替
    try:
        longer_config(preset("gpt-micro"), 512, "none")
    except ValueError as error:
        print(f"学出来的位置：{error}")


if __name__ == "__main__":
    run_demo(demo)
