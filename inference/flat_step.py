r"""没有编译器，写一个词元还能快吗？——能：小模型的时间不在算，在派发；那就少派发几次。

4 层、128 维的模型，一步要乘的数不到百万个，处理器几十微秒就做完；可是 PyTorch 每叫一个算子
要几微秒，每进一个模块又要几微秒。照着课里的写法，一块里要叫三十多次：

    三个投影各乘一次、各加一次偏置，再各拆一次头      →  一个矩阵 (D, (H+2G)·d)，乘一次，切三段视图
    每个模块一次 __call__：钩子、追踪、自动混合精度    →  平铺直叙的一个循环，不进模块
    掩码、位置，每层各看一遍                          →  一步看一遍，各层共用
    写缓存：切片、赋值、再切片                        →  一次 copy_，一个视图

一步的时间，大致是

$$t \approx n_{\text{算子}} \cdot t_{\text{派发}} + \text{权重的字节} / \text{内存每秒的字节}$$

小模型里左边一项是全部，所以减半 n，就减半 t；大模型里右边一项才要紧，那要靠 kernels/。

    x ─► Norm ─► qkv（一次乘） ─► 旋转 ─► 存进缓存 ─► 注意力 ─► 输出 ─► +x
      ─► Norm ─► 变宽（门与宽一次乘） ─► 激活 ─► 变窄 ─► +x          …… 每块十来个算子

公式与模型的 forward 一样，一个也没有变，所以答案只差加法的次序；模型的 forward 就是它的标准答案。
只管最常走的一步：一行一个新词元、预先分配的缓存、认得的零件（known_parts.py）；别的都交还给模型。

权重只有一份：q、k、v 搬进相连的一块，三个参数改为指向其中各自的一段，与 kernel_plan.py 同一个办法。

四层的 GPT，一步从 189 个算子减到 87 个（下面的 demo 数给你看）：拆头、并头的转置与视图几乎全没了，
三个投影并成一个，权重不再每次转置一回；乘法、归一化、注意力本身一个也省不掉。

模块的进出也省了：课里一块要进八个模块，每进一次都要看有没有钩子、是不是在追踪。

次序为什么是「先写缓存、再看缓存」？新词元也要看自己；它的 K、V 写在第 start 列，看的就是
first … start 这几列。长度却等整步算完才加：半途出了错，缓存仍是原来的样子。

什么时候没有用：
    模型大        一步几十毫秒都在读权重，派发不到一成
    有编译器      kernels/ 一步只进一次 C++，比这里还快三四倍
    读提示        一次几十个词元，算子还是那么多个，摊到每个词元就不要紧了

常见疑问：
    为什么不用 torch.compile？  它也省派发，但要编译器；这条路正是给没有编译器的人的
    为什么课里不这样写？        课里一个零件一个模块，才看得懂、换得了；平铺开来，改一处要动全身
    成批呢？                    一样：B 行一起，算子还是那么多个，所以每个词元更省

论文：Pope 等 2022 (arXiv:2211.05102) §3，解码的时间花在哪里。
改哪里：多认一种零件 → FlatBlock.of；多管一种情形 → FlatStep.run 开头的几个条件。
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from foundation.demonstration import run_demo
from gpt_model.inputs import real_positions
from gpt_model.model import GPT
from inference.known_parts import known_block, known_embedding, known_linear, known_norm
from transformer_basics.kv_cache import ModelCache
from transformer_basics.layers import ACTIVATIONS, LayerNorm
from transformer_basics.quantized_linear import quantized_parts

__all__ = ["FlatStep"]

Change = Callable[[Tensor], Tensor]  # 一个张量进、同样形状的张量出


class Product(NamedTuple):
    """几个线性层并成的一个：y = x·Wᵀ + b。"""

    weight: Tensor  # (K, N)，转置的视图：每步省一次转置
    bias: Tensor | None  # (N,)

    def __call__(self, x: Tensor) -> Tensor:
        """(B, K) → (B, N)；偏置与乘法是一个算子。

        为什么不用 F.linear：它每次要转置一回，前面还包着一层 Python
        """
        if self.bias is None:
            return torch.mm(x, self.weight)
        return torch.addmm(self.bias, x, self.weight)


def fuse(*linears: Any) -> Product:
    """几个输入相同的线性层并成一个；权重搬到一处，各自的参数指向其中一段，所以没有两份。

    形状：[(N₁, K), (N₂, K), …] → (K, N₁ + N₂ + …)
    """
    weights = [linear.weight.detach() for linear in linears]
    # 只有一个的不必搬：转置是视图
    if len(linears) > 1:
        # ① 拼成一块，再把各自的参数指过来
        whole = torch.cat(weights)
        pieces = torch.split(whole, [len(weight) for weight in weights])
        for linear, piece in zip(linears, pieces, strict=True):
            linear.weight.data = piece
    else:
        whole = weights[0]
    # ② 偏置很小，抄一份就是；有的有、有的没有，没有的当作 0
    biases = [linear.bias for linear in linears]
    if all(bias is None for bias in biases):
        return Product(whole.t(), None)
    rows = [
        torch.zeros(len(weight), dtype=weight.dtype) if bias is None else bias.detach()
        for weight, bias in zip(weights, biases, strict=True)
    ]
    return Product(whole.t(), torch.cat(rows))


def flat_norm(norm: Any) -> Change:
    """归一化：直接叫算子，不进模块；没有的（Post-LN 的最后一个）什么也不做。

    公式：见 transformer_basics/layers.py；这里叫的是同一个融合的核
    """
    # Identity 没有 ε
    if not hasattr(norm, "eps"):
        return lambda x: x
    shape, weight, eps = norm.shape, norm.weight.detach(), norm.eps
    # 两种里的另一种：只有 γ
    if not isinstance(norm, LayerNorm):
        return lambda x: F.rms_norm(x, shape, weight, eps)
    # β 可以没有
    bias = None if norm.bias is None else norm.bias.detach()
    # F.layer_norm 外面还包着一层 Python；直接叫里面的
    return lambda x: torch.layer_norm(x, shape, weight, bias, eps)


def head_norms(attention: Any) -> tuple[Tensor, float] | None:
    """qk_norm：查询与键的 γ 不同，除以均方根却是同一件事，所以一起做；没有就是 None。

    形状：γ 抄成每头一行 (H + G, d)
    """
    if attention.q_norm is None:
        return None
    # 前 H 行是查询的，后 G 行是键的：与乘出来的次序相同
    gains = [attention.q_norm.weight] * attention.n_heads
    gains += [attention.k_norm.weight] * attention.n_kv_heads
    return torch.stack(gains).detach(), attention.q_norm.eps


class FlatBlock(NamedTuple):
    """一块的全部：几个合并好的乘法、几个归一化。

    次序就是用的次序：注意力的在前，前馈的在后
    """

    attention_norm: Change
    query_key_value: Product
    head_norm: tuple[Tensor, float] | None  # qk_norm 的 γ：各头一行 (H+G, d)；与 ε
    output: Product
    ffn_norm: Change
    up: Product  # 有门时是门与宽并成的
    gated: bool
    activate: Change
    down: Product

    @classmethod
    def of(cls, block: Any) -> FlatBlock:
        """由认得的一块造；权重当场搬到一处。

        约定：只认 known_block 说认得的；那里已经查过每个零件的类型、钩子与参数的类型
        """
        attention, ffn = block.attention, block.feed_forward
        gates = [] if ffn.gate_proj is None else [ffn.gate_proj]
        return cls(
            flat_norm(block.attention_norm),
            fuse(attention.q_proj, attention.k_proj, attention.v_proj),
            head_norms(attention),
            fuse(attention.out_proj),
            flat_norm(block.ffn_norm),
            # 先门、后宽：乘出来的前一半是门
            fuse(*gates, ffn.up_proj),
            bool(gates),
            ACTIVATIONS[ffn.activation],
            fuse(ffn.down_proj),
        )

    def feed_forward(self, x: Tensor) -> Tensor:
        """归一化、变宽、激活、变窄：(B, D) → (B, D)，还没有加到主路上。

        公式：W_down·act(W_up·x)；门控时 W_down·(act(W_gate·x) ⊙ W_up·x)
        """
        wide = self.up(self.ffn_norm(x))  # (B, F)，门控时 (B, 2F)
        if not self.gated:
            return self.down(self.activate(wide))
        # 切开的两半都是视图，不抄
        gate, wide = wide.chunk(2, dim=-1)
        return self.down(self.activate(gate) * wide)


class FlatStep:
    """一个模型的「一行一个新词元」：`run` 给出分数，不归它管时给 None，什么也没有动。

    约定：准备好之后不要再训练或改动这个模型；偏置是抄出来的
    """

    def __init__(self, model: GPT) -> None:
        self.model, self.config = model, model.config
        self.blocks = [FlatBlock.of(block) for block in model.blocks]
        # 每步都要的，先取出来：模块的属性每问一次也要一微秒
        self.table, self.dtype = model.token_embedding.weight.detach(), model.dtype
        # 打分的矩阵多半与词表共用：只有一个，不搬
        self.final_norm, self.head = flat_norm(model.final_norm), fuse(model.lm_head)
        # 两张表一次算好：位置的、RoPE 的；一步只取一行
        length, cpu = model.config.max_seq_len, torch.device("cpu")
        self.places: Tensor | None = None
        if model.position_embedding is not None:
            self.places = model.position_embedding(torch.arange(length)).detach()  # (L, D)
        self.angles = None if model.rotary is None else model.rotary.tables(length, cpu)  # (L, d)

    @classmethod
    def of(cls, model: GPT) -> FlatStep | None:
        """每个零件都认得、都是浮点、在 CPU 上、Pre-LN，才造；否则 None。

        为什么宁缺毋滥：认错一个零件，写出来的就不是那个模型；认不得，只是慢一点
        """
        c = model.config
        whole = known_embedding(model) and known_linear(model.lm_head)
        whole = whole and known_norm(model.final_norm) and c.norm_position == "pre"
        whole = whole and all(known_block(block, model) for block in model.blocks)
        # 整数的权重每次要还原，时间不在派发
        if not whole or quantized_parts(model) or len({p.dtype for p in model.parameters()}) > 1:
            return None
        return cls(model)

    def run(
        self, ids: Tensor, positions: Tensor | None, real: Tensor | None, cache: ModelCache
    ) -> Tensor | None:
        """ids (B, 1) → (B, 1, V)，缓存前进一格；不归它管就是 None。

        形状、类型、容量由调用者看过了（PreparedModel._step），这里只看余下的
        """
        c, start = self.config, cache.length
        # 每步现取：束搜索换行、退场之后，缓冲区可能是新的
        buffers: list[tuple[Tensor, Tensor]] = [layer.buffers for layer in cache.layers]  # type: ignore[attr-defined]
        # ① 不归它管的：不止一个新词元、缓存的类型不同、编号不对、末尾是填充
        if ids.shape[1] != 1 or buffers[0][0].dtype != self.dtype:
            return None
        new = ids[:, 0]  # (B,)
        if not all(0 <= token < c.vocab_size for token in new.tolist()):
            return None
        if real is not None and not bool(real[:, -1].all()):
            return None
        # ② 位置：缓存的长度；左填充的批里各行不同
        if positions is None:
            at: Any = slice(start, start + 1) if real is None else real_positions(real, 1)[:, 0]
        else:
            at = positions.flatten()  # (B,) 或 (1,)
            # 负的下标会从表的末尾数起，不报错，却是错的
            if bool((at < 0).any()) or int(at.max()) >= c.max_seq_len:
                return None
        #    查表：词向量加位置；RoPE 不在这里加，只把这一步的角度取出来，各层共用
        x = torch.embedding(self.table, new)  # (B, D)
        if self.places is not None:
            x = x + self.places[at]
        angles = None
        if self.angles is not None:  # (B 或 1, 1, d)：各头一样
            angles = tuple(t[at][:, None].to(x.dtype) for t in self.angles)
        # ③ 看得见哪几列：有窗口就只看末尾几列；填充的列由掩码挡住
        first = max(0, start + 1 - (c.sliding_window or start + 1))
        mask = None if real is None else real[:, None, None, first:]  # (B, 1, 1, S)
        for block, (keys, values) in zip(self.blocks, buffers, strict=True):
            # x 是自己刚造的，就地加
            x += self._attend(block, x, angles, mask, (keys, values), (first, start))
            x += block.feed_forward(x)
        # ④ 都算完了才记长度：半途出错，缓存仍是原来的样子
        #    各层一起加：一层先加了，别的层的位置就对不上
        for layer in cache.layers:
            layer.length += 1
        # ⑤ 打分；限幅的那一句与模型里的相同
        logits = self.head(self.final_norm(x))  # (B, V)
        if c.logit_softcap is not None:
            logits = c.logit_softcap * torch.tanh(logits / c.logit_softcap)
        return logits[:, None]  # (B, 1, V)

    def _attend(
        self,
        block: FlatBlock,
        x: Tensor,
        angles: Any,
        mask: Tensor | None,
        stored: tuple[Tensor, Tensor],
        columns: tuple[int, int],
    ) -> Tensor:
        """一块的注意力：(B, D) → (B, D)；新的 K、V 写进第 start 列。

        公式：softmax(q·Kᵀ/√d + 掩码)·V，各头接起来，再乘 W_out
        stored：这一层的两块缓冲区 (B, G, C, d)；columns：看得见的第一列与新词元的那一列
        """
        c, (keys, values), (first, start) = self.config, stored, columns
        n_rows, n_heads, groups, d = x.shape[0], c.n_heads, c.kv_heads, c.head_size
        together = block.query_key_value(block.attention_norm(x)).view(n_rows, -1, d)
        # 一次乘出 q、k、v，切开的都是视图；
        # torch.split 外面还包着两层 Python，直接叫里面的
        if block.head_norm is None and angles is None:
            query, key, value = together.split_with_sizes([n_heads, groups, groups], dim=1)
        else:
            # 查询与键挨着，一起归一化、一起旋转；次序与课里相同，先归一化
            pair, value = together.split_with_sizes([n_heads + groups, groups], dim=1)
            if block.head_norm is not None:
                gains, eps = block.head_norm
                pair = F.rms_norm(pair, (d,), None, eps) * gains  # (B, H+G, d)
            # 位置是学出来的、或者没有位置的，就不旋转
            if angles is not None:
                pair = turn(pair, *angles)
            query, key = pair.split_with_sizes([n_heads, groups], dim=1)
        # select 与 narrow 都是视图：写一列，看几列，不抄旧的
        keys.select(2, start).copy_(key)
        values.select(2, start).copy_(value)
        # 同组的 H/G 个头看同样的键，当成 H/G 个查询一次算完；都看得见全部，所以不要因果的掩码
        n = start + 1 - first
        heads = F.scaled_dot_product_attention(
            query.reshape(n_rows, groups, -1, d),
            keys.narrow(2, first, n),
            values.narrow(2, first, n),
            attn_mask=mask,
        )  # (B, G, H/G, d)
        return block.output(heads.reshape(n_rows, -1))


def turn(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """旋转位置编码：[a | b] → [a·cos − b·sin | b·cos + a·sin]，正弦的前一半已带负号。

    形状：x (B, H, d)，两张表 (B 或 1, 1, d)；转半圈 (roll) 就是前后两半对调
    三个算子：乘余弦、对调、乘加；与 transformer_basics/rotary.py 同一个公式
    """
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), signed_sin)


class Counter(TorchDispatchMode):
    """数一数叫了几个算子：每一个都从这里过。"""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.n = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """记一个，照常做。"""
        self.n += 1
        return func(*args, **(kwargs or {}))


def demo() -> None:
    """与模型自己的 forward 相同；一步少叫几个算子。

    算子数是数出来的，每台机器一样；快多少要看 benchmarks/decode_speed.py
    """
    from gpt_model.config import preset

    torch.manual_seed(0)
    for name in ("gpt-micro", "modern-micro"):
        model: Any = GPT(preset(name, init_std=0.05)).eval()
        ids = torch.randint(1000, (2, 12))
        # 标准答案先算：合并之后参数搬了家，值不变
        with torch.no_grad():
            wanted = model(ids).logits
            flat: Any = FlatStep.of(model)
            assert torch.equal(model(ids).logits, wanted)
            # 一个一个地读，各用各的缓存，最后一步数一数算子
            caches, found = (model.make_cache(2), model.make_cache(2)), []
            for t in range(12):
                new = ids[:, t : t + 1]
                with Counter() as lesson:
                    model(new, cache=caches[0], last_only=True)
                with Counter() as mine:
                    found.append(flat.run(new, None, None, caches[1]))
        gap = float((torch.cat(found, dim=1) - wanted).abs().max())
        print(f"① {name}：逐个读与一次读完，分数相差至多 {gap:.0e}")
        assert gap < 1e-4
        print(f"   一步的算子 {lesson.n} → {mine.n}")
        assert mine.n < 0.6 * lesson.n
    # 不归它管的：编号不对、不止一个
    cache = model.make_cache(1)
    print(f"② 编号 −1：{flat.run(torch.tensor([[-1]]), None, None, cache)}，交还给模型去说")
    assert flat.run(torch.tensor([[-1]]), None, None, cache) is None
    assert flat.run(torch.tensor([[1, 2]]), None, None, cache) is None
    # 参数指着合并的那一块：没有两份；
    # 所以存盘、改权重都照旧，只是偏置改了要重新准备
    q, k = model.blocks[0].attention.q_proj.weight, model.blocks[0].attention.k_proj.weight
    print(f"③ q 与 k 挨着：相距 {k.data_ptr() - q.data_ptr():,} 字节，正是 q 的大小")
    assert k.data_ptr() - q.data_ptr() == q.nbytes


if __name__ == "__main__":
    run_demo(demo)
