r"""认得的零件怎样交给 C++？——权重搬进一整块内存，其余的填成一张表，只递一个地址过去。

哪些认得，见 known_parts.py；一块之内有一样不认得，整块就留给 PyTorch，于是模型分成几段：

    块        0     1     2     3     4     5
    认得吗    ✓     ✓     ✗     ✓     ✓     ✓
    谁来算  └─ C++ ─┘ PyTorch └───── C++ ─────┘        残差流 x 在两边之间传来传去

权重按读的次序搬进一整块内存（foundation/large_pages.py）：q、k、v 挨着，读起来就像一个矩阵。
模型里的参数改为指向新的地方，值不变，所以内存里始终只有一份：

$$\text{多占的内存} \approx \max_i |W_i| \qquad \text{（搬的时候，正在搬的那一个有两份）}$$

    搬之前   q ▒▒▒▒      up ▒▒▒▒▒▒▒▒    k ▒▒▒▒   …      各在各处
    搬之后   ▐q▒▒▒▒k▒▒▒▒v▒▒▒▒out▒▒▒▒up▒▒▒▒▒▒▒▒down▒▒▒▒▒▒▒▒▌   从头到尾一条路

整数的权重先化成 C++ 认得的组（integer_blocks.py）；化成的与存的逐字节相同时，也只留一份。

小东西（偏置、归一化的 γ、β）变成 float32 另存一份：它们只占千分之几，C++ 那边就不必认得它们的
各种类型。RoPE 的表、正弦的位置在模型里是现算的，这里一次算到上下文那么长，也成了表。

读的次序为什么要紧？写一个词元，C++ 从第一块的 q 读到最后的打分，一个字节也不跳。处理器看出
「一直往后」，就自己往前预取；几个核各拿相连的一段，也都是一直往后。乱着放，每换一个矩阵就要重新
起步一次，小模型几十个矩阵，起步的时间加起来比读还长。

    一步要读的：  [ 块 0 的七个 ][ 块 1 的七个 ] … [ 打分 ]     正好是整块内存，一遍

填表的次序，也就是 C++ 用到它们的次序：

    先问（known_parts）──► 数大小 ──► 要一整块 ──► 一块一块地搬、填 ──► 两头（查表、打分）
    什么也不动              共用的算一次   大页        参数指向新地方         共用的不再搬

常见疑问：
    为什么先数一遍大小？  大页要一整块地要：要小了放不下，要大了白占
    共用的矩阵怎么办？    lm_head 与词嵌入是同一个参数；搬的是参数里的数，两处一起换地方
    搬了家还能存盘吗？    能：参数还是那些参数，存的是里面的数
    能准备两次吗？        能，每次搬一回；从前准备好的那个仍指着旧的那一块，也还是对的
    为什么表里是地址？    地址八个字节，抄一份权重几百兆；而且抄了，改原来的它就不知道
    浮点与整数能混吗？    能：每个矩阵各说各的存法，lm_head 浮点、块四比特，也只是两种分支
    为什么要 alive？      C++ 只有地址，不算引用；少留一个张量，那块内存就可能被别人拿去用

改哪里：让 C++ 认得新的零件 → known_parts.py；多递一样东西 → _sizes、_ends 与 kernel_interface.py。
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from foundation.demonstration import run_demo
from foundation.large_pages import WeightBlock
from gpt_model.model import GPT
from inference import kernel_interface as c_side
from inference.integer_blocks import block_of, in_rows, integer_block, room_for, side_by_side
from inference.known_parts import known_block, known_embedding, known_linear, known_norm, parts
from transformer_basics.layers import NORMS
from transformer_basics.linear import Linear
from transformer_basics.quantized_linear import PackedWeight, quantized_parts

__all__ = ["KernelPlan"]

# LayerNorm → 1，RMSNorm → 2：与 interface.h 的 enum 一致
NORM_KINDS = {kind: c_side.NORM_CODES[name] for name, kind in NORMS.items()}


class KernelPlan:
    """认得的零件排成 C++ 的结构；`stretches` 说哪几块归谁。

    known：每一块归不归 C++；embeds、scores：查表与打分归不归
    block：装着权重的那一整块内存；struct：递给 C++ 的表，其余的都挂在它下面
    约定：准备好之后不要再训练或改动这个模型；指针指着的张量由 `alive` 留着
    """

    def __init__(self, model: GPT, lanes: int = 8, depth: int = 2) -> None:
        # 整数的几行一片、一步几个编码：由编译好的库定，见 integers.h
        self.model, self.lanes, self.depth = model, lanes, depth
        # C++ 借用的一切：少留一样，那块内存就可能被别人拿去用
        self.alive: list[Any] = []
        self.known = [known_block(block, model) for block in model.blocks]
        self.scores = known_linear(model.lm_head) and known_norm(model.final_norm)
        self.embeds = known_embedding(model)
        # 先问、后搬：问的时候什么也不动，一块也不认得的模型原样不变
        # ① 要多大一块：认得的层的权重，各凑成整条缓存线；共用的只算一次
        sizes = {identity(layer): room_for(layer) for layer in self._linears()}
        if isinstance(model.token_embedding, PackedWeight) and self.embeds:
            sizes[identity(model.token_embedding)] = room_for(model.token_embedding)
        self.block = WeightBlock(sum(sizes.values()))
        self._placed: dict[int, tuple[Any, ...]] = {}  # 共用的只搬一次
        self.views: dict[int, Tensor] = {}  # 搬了家的编码：原来的记号 → 新地方的视图
        # ② 按读的次序一层层搬
        blocks = (c_side.BlockStruct * len(model.blocks))()
        for index, block in enumerate(model.blocks):
            if self.known[index]:
                linears, norms = parts(block)
                blocks[index] = c_side.BlockStruct(
                    *map(self._norm, norms), *map(self._matrix, linears)
                )
        # ③ 两头：查表、位置、打分
        #    结构里存的是 blocks 的地址，所以它也要留着
        self.alive.append(blocks)
        self.struct = self._sizes()
        self.struct.blocks = blocks
        self._ends()
        # ④ 共用一份的（打分与查表），几处都改为指向新的地方
        for part in quantized_parts(model).values():
            part.packed = self.views.get(identity(part), part.packed)

    def stretches(self) -> Iterator[tuple[int, int, bool]]:
        """相连的同一家合成一段：（第一块，最后一块的下一块，归 C++ 吗）。

        一段只进一次 C++；全归它时，整个模型就是一段
        例：认得吗 [✓ ✓ ✗ ✓] → (0, 2, 真)、(2, 3, 假)、(3, 4, 真)
        """
        first = 0
        # 多走一步到末尾之后，
        # 最后一段才收得进来
        for index in range(1, len(self.known) + 1):
            if index == len(self.known) or self.known[index] != self.known[first]:
                yield first, index, self.known[first]
                first = index

    def _linears(self) -> Iterator[Any]:
        """认得的线性层，按读的次序；打分的矩阵最后读。

        共用的（打分与查表）只在这里出现一次；查表那一头不必另搬

        这个次序也是搬家的次序：处理器读完一个，下一个就在后面
        """
        for known, block in zip(self.known, self.model.blocks, strict=True):
            if known:
                yield from (linear for linear in parts(block)[0] if linear is not None)
        if self.scores:
            yield self.model.lm_head

    # ── 一样样地填 ──────────────────────────────────────────────────────
    def _borrow(self, tensor: Tensor | None) -> int | None:
        """一个小张量的 float32 副本的地址；没有就是空指针。

        小：偏置、γ、β、位置的表，合起来不到权重的百分之一

        类型：已经是 float32 的不抄，借的就是它本身
        """
        if tensor is None:
            return None
        wide = tensor.detach().float().contiguous()
        self.alive.append(wide)
        return int(wide.data_ptr())

    def _matrix(self, linear: Any) -> c_side.MatrixStruct:
        """权重搬进大页；参数改为指向新的地方，所以没有两份。

        形状：权重 (N, K) 按行存，正是 C++ 要的：一行接一行地读
        为什么改 .data 而不换一个 Parameter：优化器、共用它的别的模块，认的都是那个对象
        """
        if linear is None:
            return c_side.MatrixStruct()
        # 偏置各有各的；权重若与别处共用，搬过一次就不再搬
        key = identity(linear)
        if key not in self._placed:
            integers = isinstance(linear, PackedWeight)
            self._placed[key] = self._integers(linear) if integers else self._floats(linear)
        return c_side.MatrixStruct(*self._placed[key], self._borrow(getattr(linear, "bias", None)))

    def _floats(self, linear: Any) -> tuple[Any, ...]:
        """浮点的权重：搬过去，参数指向新的地方。

        旧的那一份内存，没有别人用就当场还掉
        """
        weight = linear.weight
        weight.data = self.block.place(weight)
        self.alive.append(weight)
        # 组、刻度、零点：浮点的都没有
        return (c_side.KINDS[weight.dtype], *weight.shape, 0, weight.data_ptr(), None, None)

    def _integers(self, part: PackedWeight) -> tuple[Any, ...]:
        """整数的权重：编码、刻度、零点，三样都并排摆好。

        化成的字节若与存的相同，缓冲区就改为换回次序的视图，所以没有两份
        """
        block = block_of(part)
        assert block is not None  # 化不成的，known_linear 已经说不认得
        stored = integer_block(part, block)
        packed = self.block.place(side_by_side(stored.packed, self.lanes, self.depth))
        whole = stored.packed.numel() == part.stored.packed.numel()
        if whole and (part.bits == 8 or part.group_size == block):
            self.views[identity(part)] = in_rows(packed)
        # 刻度与零点很小，另放；编码才是大头
        small = [t[..., None] for t in stored[1:] if t is not None]
        places = [self.block.place(side_by_side(t, self.lanes, 1)) for t in small]
        self.alive += [packed, *places]
        zero = places[1].data_ptr() if len(places) > 1 else None
        columns = stored.scale.shape[1] * block
        where = (part.rows, columns, block, packed.data_ptr(), places[0].data_ptr(), zero)
        return (c_side.KINDS[packed.dtype], *where)

    def _norm(self, norm: Any) -> c_side.NormStruct:
        """归一化：哪一种、ε、γ、β；没有的与 Identity 都是「什么也不做」。

        类型：γ、β 变成 float32；bfloat16 变宽不丢一位
        """
        if type(norm) not in NORM_KINDS:
            return c_side.NormStruct()
        # RMSNorm 没有 β；
        # LayerNorm 也可以没有
        bias = self._borrow(getattr(norm, "bias", None))
        return c_side.NormStruct(NORM_KINDS[type(norm)], norm.eps, self._borrow(norm.weight), bias)

    def _sizes(self) -> c_side.ModelStruct:
        """只有数的那些字段。

        次序与 c_side.ModelStruct 的前十个字段相同
        """
        c = self.model.config
        return c_side.ModelStruct(
            *(c.dim, c.n_heads, c.kv_heads, c.head_size, c.ffn_size, c.vocab_size),
            # 0 就是没有：
            # 窗口为 0 是看到开头，限幅为 0 是不限
            *(c.sliding_window or 0, c.norm_position == "post"),
            c_side.ACTIVATION_CODES.get(c.activation, 0),
            c.logit_softcap or 0.0,
        )

    def _ends(self) -> None:
        """两头：打分、查表、位置。不认得的，对应的字段是空的，C++ 不会去碰。"""
        model, struct = self.model, self.struct
        length = model.config.max_seq_len
        # 打分的矩阵最后读，所以最后搬
        # ① 先搬打分的矩阵：它若与词嵌入共用，词嵌入跟着就到了新的地方
        if self.scores:
            struct.head = self._matrix(model.lm_head)
            struct.final_norm = self._norm(model.final_norm)
        if self.embeds:
            # 浮点的词表就用原处的那一份：一步只查一行，不必搬；共用的前面已经搬过
            table: Any = model.token_embedding
            if isinstance(table, PackedWeight):
                struct.embedding = self._matrix(table)
            else:
                self.alive.append(table.weight)
                where = (*table.weight.shape, 0, table.weight.data_ptr())
                struct.embedding = c_side.MatrixStruct(c_side.KINDS[table.weight.dtype], *where)
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


def identity(layer: Any) -> int:
    """同一份权重的记号：共用的两处相同。

    浮点的看参数对象，整数的看编码那个张量：QuantizedLinear.share 共用的正是它

    对象的地址在它活着时不会重复；模型拿着它们，所以都活着
    """
    return id(layer.packed if isinstance(layer, PackedWeight) else layer.weight)


def demo() -> None:
    """一个普通的模型全归 C++，搬了家而结果一位不差；整数的与浮点的各占多少。"""
    from gpt_model.config import preset
    from inference.quantization import quantize

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
    # 次序就是读的次序
    q, k = (getattr(model.blocks[0].attention, name).weight for name in ("q_proj", "k_proj"))
    distance = k.data_ptr() - q.data_ptr()
    print(f"   q 与 k 挨着：相距 {distance:,} 字节，正是 q 的大小")
    assert distance == q.nbytes
    # 第 2 块换成了子类：模型分成三段，
    # 残差流在段与段之间传
    model.blocks[2].attention.q_proj = type("Louder", (Linear,), {})(128, 128, bias=False)
    stretches = list(KernelPlan(model).stretches())
    print(f"③ 第 2 块的 q_proj 换了子类：{stretches}")
    assert stretches == [(0, 2, True), (2, 3, False), (3, 6, True)]
    # 四比特：八分之一还多一点，
    # 多的是刻度
    small = quantize(GPT(preset("modern-micro", vocab_size=65)), bits=4)
    assert isinstance(small, GPT)
    plan = KernelPlan(small)
    print(f"④ 四比特的四块：{plan.block.used:,} 字节，{list(plan.stretches())}")
    assert list(plan.stretches()) == [(0, 4, True)]


if __name__ == "__main__":
    run_demo(demo)
