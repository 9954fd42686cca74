r"""哪些零件 C++ 认得？——认得的才交，不认得的一个也不猜。

模型可能被人动过：装了 LoRA、换了激活、挂了钩子（hook）、继承了一个类改了几行。猜错了不会报错，
只会写出不对的话。所以这里逐个零件核对，类型要一模一样（子类也不算）：

$$\text{交给 C++} \iff \bigwedge_{\text{零件}} \text{type}(\text{零件}) \in \text{认得的}
  \;\wedge\; \text{没有钩子} \;\wedge\; \text{参数在 CPU 上、类型认得}$$

    block ─┬─ attention ─┬─ q、k、v、out_proj     有一个不认得，整块留给 PyTorch；
           │             └─ q_norm、k_norm        别的块照旧归 C++
           ├─ feed_forward ── gate、up、down_proj
           └─ attention_norm、ffn_norm

开头的查表、末尾的打分也各问一次，与块分开：词嵌入掺了前一个词元（token shift）的，只有查表留下；
lm_head 装了 LoRA 的，只有打分留下。

C++ 认得的全部：

    块          TransformerBlock，归一化在前（pre）或在后（post），与配置一致
    注意力      CausalSelfAttention：任意的头数、分组、每头维数；窗口、qk_norm、RoPE 可有可无
    前馈        FeedForward：五种激活，门控或不门控
    归一化      LayerNorm（有无 β）、RMSNorm
    线性层      float32、bfloat16，或八比特、四比特的整数（QuantizedLinear），有无偏置
    查表        TokenEmbedding 或整数的，加学出来的、正弦的位置，或者没有
    打分        与词嵌入共用的或另有的 lm_head，可限幅（softcap）

怎样教它认得一样新的，例如一种新的激活，要改四处，少改一处测试就会说：
    kernels/pieces.h         activate 里写出公式，一次算一格（Vec）
    kernels/interface.h      enum Activation 里给它一个号
    kernel_interface.py      ACTIVATION_CODES 里写上同一个号
    tests/numerics           test_decoding_kernels.py 的抽样里加上它的名字

常见疑问：
    子类为什么不算？      子类可以改 forward；isinstance 说「是」的，不等于「算的是同一个式子」
    训练模式要紧吗？      类型与权重都一样；dropout 还开着的，由 prepared.py 在每一步看
    钩子为什么要查？      钩子能改输入输出，C++ 那边没有它；量激活的工具（GPTQ、AWQ）正是靠钩子
    为什么不干脆报错？    用户要的是写出来的话；慢一点的那几块照样写得对

改哪里：让 C++ 认得新的零件 → 本课的 known_block、known_linear，与 kernels/ 里的公式。
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from foundation.demonstration import run_demo
from gpt_model.model import GPT
from inference.integer_blocks import block_of
from inference.kernel_interface import ACTIVATION_CODES, KINDS
from transformer_basics.attention import CausalSelfAttention
from transformer_basics.embeddings import LearnedPositions, SinusoidalPositions, TokenEmbedding
from transformer_basics.layers import NORMS, FeedForward, TransformerBlock
from transformer_basics.linear import Linear
from transformer_basics.quantized_linear import QuantizedEmbedding, QuantizedLinear

__all__ = ["known_block", "known_embedding", "known_linear", "known_norm", "parts"]

NORM_TYPES = tuple(NORMS.values())


def plain(module: Any, *kinds: type) -> bool:
    """恰好是这些类之一，没有钩子，参数是 CPU 上的 float32 或 bfloat16。

    约定：只看它自己，不看它的子模块；子模块各自再问
    """
    if type(module) not in kinds:
        return False
    # 钩子能看、能改输入输出；交给 C++ 就跳过了它们
    if module._forward_hooks or module._forward_pre_hooks:
        return False
    # 半精度的另一种（float16）、整数的，C++ 那边没有写：
    # 认不得的类型若当成 float32 读，读出来的全是乱数
    own = module.parameters(recurse=False)
    return all(p.device.type == "cpu" and p.dtype in KINDS for p in own)


def known_linear(module: Any) -> bool:
    """线性层：我们的、PyTorch 的，或者整数的。

    weight_norm 一类会换掉模块的类型，权重每次现算；类型不同，自然也不算
    """
    if plain(module, QuantizedLinear):
        return block_of(module) is not None
    return plain(module, Linear, nn.Linear)


def known_norm(module: Any) -> bool:
    """两种归一化；Identity 是 Post-LN 的最后一个，什么也不做。

    公式：见 transformer_basics/layers.py；C++ 里的那一份在 kernels/pieces.h
    """
    return plain(module, *NORM_TYPES, nn.Identity)


def known_block(block: Any, model: GPT) -> bool:
    """整块的每一个零件都认得吗？

    约定：宁可漏认（慢一点），不可错认（算错）
    次序：先认外壳，再看里面：外壳都不认得，里面的属性未必有
    """
    if not plain(block, TransformerBlock):
        return False
    attention, ffn, c = block.attention, block.feed_forward, model.config
    if not (plain(attention, CausalSelfAttention) and plain(ffn, FeedForward)):
        return False
    # ① 各层共用的几样，与模型的说法一致：C++ 那边整个模型只有一份
    same = attention.rotary is model.rotary and attention.sliding_window == c.sliding_window
    same = same and block.norm_position == c.norm_position
    #    激活按名字认；表里没有的是新写的
    same = same and ffn.activation == c.activation and c.activation in ACTIVATION_CODES
    #    LoRA 换掉的正是这些矩阵，所以装了 LoRA 的块在这里落选；合并之后又认得了
    # ② 矩阵与归一化；没有的（不门控、没有 qk_norm）是 None，不算不认得
    linears, norms = parts(block)
    return (
        same
        and all(known_linear(linear) for linear in linears if linear is not None)
        and all(known_norm(norm) for norm in norms if norm is not None)
    )


def parts(block: Any) -> tuple[list[Any], list[Any]]:
    """一块的七个矩阵、四个归一化；次序就是 C++ 读的次序，也是结构里字段的次序。

    没有的那一样是 None，位置仍占着：结构的字段不能错开一格
    """
    attention, ffn = block.attention, block.feed_forward
    linears = [attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj]
    # 先门、后宽：C++ 先算门，激活之后再乘宽的
    linears += [ffn.gate_proj, ffn.up_proj, ffn.down_proj]
    return linears, [block.attention_norm, block.ffn_norm, attention.q_norm, attention.k_norm]


def known_embedding(model: GPT) -> bool:
    """词向量与位置：查表加查表；掺了前一个词元的那一类留给 PyTorch。

    前一个是谁，要问缓存，还要管填充与文档的边界；那一套只在 previous_token.py 里有一份
    """
    words, table = model.token_embedding, model.position_embedding
    positions = table is None or plain(table, LearnedPositions, SinusoidalPositions)
    # 整数的词表：能化成 C++ 认得的组才行
    known = plain(words, TokenEmbedding)
    known = known or (plain(words, QuantizedEmbedding) and block_of(words) is not None)  # type: ignore[arg-type]
    return positions and known and model.previous_token is None


def demo() -> None:
    """同一个模型，一样样地动手脚，看哪几块还认得。"""
    from gpt_model.config import preset

    model: Any = GPT(preset("modern-micro", n_layers=4, vocab_size=65, max_seq_len=32)).eval()

    def report(what: str) -> list[bool]:
        """每一块认得吗；✓ 归 C++，✗ 归 PyTorch。"""
        known = [known_block(block, model) for block in model.blocks]
        marks = " ".join("✓" if one else "✗" for one in known)
        ends = (known_embedding(model), known_norm(model.final_norm))
        print(f"  {what:　<16}{marks}　　查表 {'✓✗'[not ends[0]]}　末尾归一化 {'✓✗'[not ends[1]]}")
        return known

    assert all(report("原来的"))

    class Louder(Linear):
        """谁知道它的 forward 里写了什么。"""

    # 每次多动一处，前面的留着
    model.blocks[0].attention.q_proj = Louder(128, 128, bias=False)
    report("第 0 块换了子类")
    handle = model.blocks[1].feed_forward.register_forward_hook(lambda *given: None)
    assert report("第 1 块挂了钩子") == [False, False, True, True]
    # 钩子摘掉，又认得了
    handle.remove()
    model.blocks[2].half()
    assert report("摘掉；第 2 块变成 fp16") == [False, True, False, True]
    nn.utils.parametrizations.weight_norm(model.blocks[3].attention.v_proj)
    assert report("第 3 块 weight_norm") == [False, True, False, False]
    model.final_norm.register_forward_hook(lambda *given: None)
    report("末尾归一化挂了钩子")
    assert torch.is_tensor(model.lm_head.weight)
    assert known_linear(model.lm_head)


if __name__ == "__main__":
    run_demo(demo)
