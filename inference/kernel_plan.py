r"""哪些零件交给 C++，哪些留给 PyTorch？——认得的才交，不认得的一个也不猜。

模型可能被人动过：装了 LoRA、换了激活、挂了钩子（hook）、继承了一个类改了几行。猜错了不会报错，
只会写出不对的话。所以这里逐个零件核对，类型要一模一样（子类也不算），一块之内有一样不认得，
整块就留给 PyTorch：

    块        0     1     2     3     4     5
    认得吗    ✓     ✓     ✗     ✓     ✓     ✓
    谁来算  └─ C++ ─┘ PyTorch └───── C++ ─────┘        残差流 x 在两边之间传来传去

开头的查表、末尾的打分也各问一次，与块分开：词嵌入掺了前一个词元（token shift）的，只有查表留下；
lm_head 装了 LoRA 的，只有打分留下。

认得的权重按读的次序搬进一整块内存（foundation/large_pages.py）：q、k、v 挨着，读起来就像一个
矩阵。模型里的参数改为指向新的地方，值不变，所以内存里始终只有一份：

$$\text{多占的内存} \approx \max_i |W_i| \qquad \text{（搬的时候，正在搬的那一个有两份）}$$

    搬之前   q ▒▒▒▒      up ▒▒▒▒▒▒▒▒    k ▒▒▒▒   …      各在各处
    搬之后   ▐q▒▒▒▒k▒▒▒▒v▒▒▒▒out▒▒▒▒up▒▒▒▒▒▒▒▒down▒▒▒▒▒▒▒▒▌   从头到尾一条路

小东西（偏置、归一化的 γ、β）变成 float32 另存一份：它们只占千分之几，C++ 那边就不必认得它们的
各种类型。RoPE 的表、正弦的位置在模型里是现算的，这里一次算到上下文那么长，也成了表。

核对的清单，也就是 C++ 认得的全部：

    块          TransformerBlock，归一化在前（pre）或在后（post），与配置一致
    注意力      CausalSelfAttention：任意的头数、分组、每头维数；窗口、qk_norm、RoPE 可有可无
    前馈        FeedForward：五种激活，门控或不门控
    归一化      LayerNorm（有无 β）、RMSNorm
    线性层      float32 或 bfloat16 的权重，有无偏置
    查表        TokenEmbedding，加学出来的、正弦的位置，或者没有
    打分        与词嵌入共用的或另有的 lm_head，可限幅（softcap）

怎样教它认得一样新的，例如一种新的激活，要改四处，少改一处测试就会说：
    kernels/pieces.h         activate 里写出公式，一次算一格（Vec）
    kernels/interface.h      enum Activation 里给它一个号
    kernel_interface.py      ACTIVATION_CODES 里写上同一个号
    tests/numerics           test_decoding_kernels.py 的抽样里加上它的名字

常见疑问：
    为什么先数一遍大小？  大页要一整块地要：要小了放不下，要大了白占
    共用的矩阵怎么办？    lm_head 与词嵌入是同一个参数；搬的是参数里的数，两处一起换地方
    子类为什么不算？      子类可以改 forward；isinstance 说「是」的，不等于「算的是同一个式子」
    训练模式要紧吗？      类型与权重都一样；dropout 还开着的，由 prepared.py 在每一步看
    搬了家还能存盘吗？    能：参数还是那些参数，存的是里面的数
    钩子为什么要查？      钩子能改输入输出，C++ 那边没有它；量激活的工具（GPTQ、AWQ）正是靠钩子
    为什么不干脆报错？    用户要的是写出来的话；慢一点的那几块照样写得对

改哪里：让 C++ 认得新的零件 → known_block、known_linear，与 kernels/ 里的公式。
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from foundation.demonstration import run_demo
from foundation.large_pages import WeightBlock, padded
from gpt_model.model import GPT
from inference.kernel_interface import (
    ACTIVATION_CODES,
    KINDS,
    NORM_CODES,
    BlockStruct,
    MatrixStruct,
    ModelStruct,
    NormStruct,
)
from transformer_basics.attention import CausalSelfAttention
from transformer_basics.embeddings import LearnedPositions, SinusoidalPositions, TokenEmbedding
from transformer_basics.layers import NORMS, FeedForward, TransformerBlock
from transformer_basics.linear import Linear

__all__ = ["KernelPlan"]

NORM_TYPES = tuple(NORMS.values())
# LayerNorm → 1，RMSNorm → 2：与 interface.h 的 enum 一致
NORM_KINDS = {kind: NORM_CODES[name] for name, kind in NORMS.items()}


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
    """线性层：我们的或 PyTorch 的。

    weight_norm 一类会换掉模块的类型，权重每次现算；类型不同，自然也不算
    """
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


class KernelPlan:
    """认得的零件排成 C++ 的结构；`stretches` 说哪几块归谁。

    known：每一块归不归 C++；embeds、scores：查表与打分归不归
    约定：准备好之后不要再训练或改动这个模型；指针指着的张量由 `alive` 留着
    """

    def __init__(self, model: GPT) -> None:
        self.model = model
        # C++ 借用的一切：少留一样，那块内存就可能被别人拿去用
        self.alive: list[Any] = []
        self.known = [known_block(block, model) for block in model.blocks]
        self.scores = known_linear(model.lm_head) and known_norm(model.final_norm)
        self.embeds = self._knows_embedding()
        # 先问、后搬：问的时候什么也不动，一块也不认得的模型原样不变
        # ① 要多大一块：认得的层的权重，各凑成整条缓存线；共用的只算一次
        chosen = {id(layer.weight): layer.weight for layer in self._linears()}
        self.block = WeightBlock(sum(padded(weight.nbytes) for weight in chosen.values()))
        # ② 按读的次序一层层搬
        blocks = (BlockStruct * len(model.blocks))()
        for index, block in enumerate(model.blocks):
            if self.known[index]:
                linears, norms = parts(block)
                blocks[index] = BlockStruct(*map(self._norm, norms), *map(self._matrix, linears))
        # ③ 两头：查表、位置、打分
        #    结构里存的是 blocks 的地址，所以它也要留着
        self.alive.append(blocks)
        self.struct = self._sizes()
        self.struct.blocks = blocks
        self._ends()

    def stretches(self) -> Iterator[tuple[int, int, bool]]:
        """相连的同一家合成一段：（第一块，最后一块的下一块，归 C++ 吗）。

        一段只进一次 C++；全归它时，整个模型就是一段
        例：认得吗 [✓ ✓ ✗ ✓] → (0, 2, 真)、(2, 3, 假)、(3, 4, 真)
        """
        first = 0
        # 多走一步到末尾之后，最后一段才收得进来
        for index in range(1, len(self.known) + 1):
            if index == len(self.known) or self.known[index] != self.known[first]:
                yield first, index, self.known[first]
                first = index

    def _linears(self) -> Iterator[Any]:
        """认得的线性层，按读的次序；打分的矩阵最后读。

        这个次序也是搬家的次序：处理器读完一个，下一个就在后面
        """
        for known, block in zip(self.known, self.model.blocks, strict=True):
            if known:
                yield from (linear for linear in parts(block)[0] if linear is not None)
        if self.scores:
            yield self.model.lm_head

    def _knows_embedding(self) -> bool:
        """词向量与位置：查表加查表；掺了前一个词元的那一类留给 PyTorch。

        前一个是谁，要问缓存，还要管填充与文档的边界；那一套只在 previous_token.py 里有一份
        """
        model = self.model
        table = model.position_embedding
        positions = table is None or plain(table, LearnedPositions, SinusoidalPositions)
        return (
            positions
            and plain(model.token_embedding, TokenEmbedding)
            and model.previous_token is None
        )

    # ── 一样样地填 ──────────────────────────────────────────────────────
    def _borrow(self, tensor: Tensor | None) -> int | None:
        """一个小张量的 float32 副本的地址；没有就是空指针。

        类型：已经是 float32 的不抄，借的就是它本身
        """
        if tensor is None:
            return None
        wide = tensor.detach().float().contiguous()
        self.alive.append(wide)
        return int(wide.data_ptr())

    def _matrix(self, linear: Any) -> MatrixStruct:
        """权重搬进大页；参数改为指向新的地方，所以没有两份。

        形状：权重 (N, K) 按行存，正是 C++ 要的：一行接一行地读
        为什么改 .data 而不换一个 Parameter：优化器、共用它的别的模块，认的都是那个对象
        """
        if linear is None:
            return MatrixStruct()
        weight = linear.weight
        # 几处共用的只搬一次；搬过的就不动
        if weight not in self.block:
            weight.data = self.block.place(weight)
        self.alive.append(weight)
        # 第四个是整数权重的组：浮点的没有刻度
        where = (*weight.shape, 0, weight.data_ptr(), None)
        return MatrixStruct(KINDS[weight.dtype], *where, self._borrow(linear.bias))

    def _norm(self, norm: Any) -> NormStruct:
        """归一化：哪一种、ε、γ、β；没有的与 Identity 都是「什么也不做」。"""
        if type(norm) not in NORM_KINDS:
            return NormStruct()
        # RMSNorm 没有 β；LayerNorm 也可以没有
        bias = self._borrow(getattr(norm, "bias", None))
        return NormStruct(NORM_KINDS[type(norm)], norm.eps, self._borrow(norm.weight), bias)

    def _sizes(self) -> ModelStruct:
        """只有数的那些字段。

        次序与 ModelStruct 的前十个字段相同
        """
        c = self.model.config
        return ModelStruct(
            *(c.dim, c.n_heads, c.kv_heads, c.head_size, c.ffn_size, c.vocab_size),
            # 0 就是没有：看到开头、不限幅
            *(c.sliding_window or 0, c.norm_position == "post"),
            ACTIVATION_CODES.get(c.activation, 0),
            c.logit_softcap or 0.0,
        )

    def _ends(self) -> None:
        """两头：打分、查表、位置。不认得的，对应的字段是空的，C++ 不会去碰。"""
        model, struct = self.model, self.struct
        length = model.config.max_seq_len
        # ① 先搬打分的矩阵：它若与词嵌入共用，词嵌入跟着就到了新的地方
        if self.scores:
            struct.head = self._matrix(model.lm_head)
            struct.final_norm = self._norm(model.final_norm)
        if self.embeds:
            table = model.token_embedding.weight
            self.alive.append(table)
            where = (*table.shape, 0, table.data_ptr())
            struct.embedding = MatrixStruct(KINDS[table.dtype], *where)
            if model.position_embedding is not None:
                # 学出来的与正弦的，都是「问它每个位置」，抄成一张表
                rows = model.position_embedding(torch.arange(length))
                struct.position_table, struct.n_positions = self._borrow(rows), length
        # ② RoPE 的两张表：正弦的前一半已带负号，C++ 里只剩乘加
        #    表在模型里是现算的，模型换设备、变半精度都动不了它；这里留下的是同一张
        if model.rotary is not None:
            cos, signed_sin = model.rotary.tables(length, torch.device("cpu"))
            struct.cos, struct.signed_sin = self._borrow(cos), self._borrow(signed_sin)
            struct.n_angles = len(cos)


def demo() -> None:
    """一个普通的模型全归 C++；动过手脚的几块留给 PyTorch。"""
    from gpt_model.config import preset

    model: Any = GPT(preset("modern-micro", n_layers=6, vocab_size=65, max_seq_len=32)).eval()
    ids = torch.randint(65, (1, 8))
    before = model(ids).logits
    plan = KernelPlan(model)
    print(f"① 普通的模型：{list(plan.stretches())}（第一块，末块的下一块，归 C++ 吗）")
    assert list(plan.stretches()) == [(0, 6, True)]
    # 搬了家，值不变：同样的模型，同样的结果
    assert torch.equal(model(ids).logits, before)
    used, total = plan.block.used, sum(p.nbytes for p in model.parameters())
    print(f"② 搬进大块的权重 {used:,} 字节，全部参数 {total:,} 字节；模型照旧能用，结果一位不差")
    q, k = (getattr(model.blocks[0].attention, name).weight for name in ("q_proj", "k_proj"))
    distance = k.data_ptr() - q.data_ptr()
    print(f"   q 与 k 挨着：相距 {distance:,} 字节，正是 q 的大小")
    assert distance == q.nbytes

    # 两种手脚：继承一个类，挂一个钩子
    class Louder(Linear):
        """谁知道它的 forward 里写了什么。"""

    model.blocks[2].attention.q_proj = Louder(128, 128, bias=False)
    model.blocks[5].feed_forward.register_forward_hook(lambda *given: None)
    plan = KernelPlan(model)
    print(f"③ 第 2 块换了子类，第 5 块挂了钩子：{list(plan.stretches())}")
    assert list(plan.stretches()) == [(0, 2, True), (2, 3, False), (3, 5, True), (5, 6, False)]
    # 末尾的归一化另问：块还归 C++，打分不归
    model.final_norm.register_forward_hook(lambda *given: None)
    print(f"④ 最后的归一化挂了钩子，打分归 C++ 吗：{KernelPlan(model).scores}")
    assert not KernelPlan(model).scores


if __name__ == "__main__":
    run_demo(demo)
