r"""整数的权重怎样参与计算？——存着整数，用时还原；反向也穿过还原的权重。

一个线性层、一张词表，只把「权重」换成 integer_weights.py 的三样（packed、scale、zero）；外面看来，
还是同样的输入输出，所以模型、生成、微调都不必知道：

    nn.Linear        y = xWᵀ + b          W  float32 (N, K)            4 字节一个权重
    QuantizedLinear  y = xŴᵀ + b          Ŵ = scale·(q − zero)         半个或一个字节，加每组的尺子
    TokenEmbedding   x = E[id]
    QuantizedEmbedding  x = Ê[id]         只还原查到的那几行

算的时候先还原，再做普通的乘法。反向也要用到权重，但不留着还原出来的那一份：

    前向  Ŵ = 还原(q, s)    y = xŴᵀ + b     用完就扔，只记下 q 与 s（它们本来就在）
    反向  Ŵ 再还原一次      ∂L/∂x = G·Ŵ     权重冻结，没有 ∂L/∂W

$$\frac{\partial L}{\partial x} = G\hat W, \qquad
  \text{字节} = N\cdot\left(\tfrac{b}{8}K + 2G + [\text{有零点}]\,G\right), \quad
  G = \lceil K / g \rceil$$

QLoRA 就是这样：底座是整数，冻着；旁边的 A、B 是普通的浮点数，梯度穿过 Ŵ 传回去。

输出层与词嵌入共用一张表时，两处也共用同样的三样张量：查表取行，打分整张还原。

一个数一个数地看（K = 2，一组两个，四比特）：
    w = [−4, 1]      m = −4，s = 0.5，q = [−8, 2]，存成一个字节 (2+8)·16 + (−8+8) = 160
    x = [1, 3]       ŵ = [−4, 1]，y = 1·(−4) + 3·1 = −1
    ∂L/∂y = 2        ∂L/∂x = [−8, 2]；q 与 s 没有梯度

三样张量为什么是缓冲区 (buffer) 而不是参数 (parameter)：缓冲区跟着模型走（存盘、换设备、复制），
优化器却看不见它，requires_grad_(True) 也碰不到它。整数本来就不能求导，当成参数只会出错。

常见疑问：
    为什么不训练 q？      它是整数，没有导数；要改权重，就在旁边加 LoRA。
    为什么放在这一层？    它只是线性层的另一种存法，与 linear.py 并列；读模型目录的、微调的、
                          写算子的都要认得它，所以在他们下面。怎样挑 q，才是上面（inference/）的事。
    快吗？                这里每次都还原整个矩阵，只省内存；要快，得一边读整数一边乘，另写自己的核。

论文：Dettmers et al. 2023, QLoRA, arXiv:2305.14314
改哪里：换一种还原 → integer_weights.py；多一种量化的层（例如卷积）→ 继承 `PackedWeight`。
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from foundation.demonstration import run_demo
from transformer_basics.integer_weights import Packed, WeightFormat, decode, encode
from transformer_basics.linear import product

__all__ = ["PackedWeight", "QuantizedEmbedding", "QuantizedLinear", "quantized_layers"]
__all__ += ["quantized_parts", "replace_module"]


class PackedWeight(nn.Module):
    """一个 (N, K) 的整数权重：三样张量是缓冲区，进 state_dict，但不是参数，没有梯度。

    stored：None 就是空壳，等着从文件里换上来
    method：q 是怎样挑的，只给人看：rtn、gptq、awq
    类型：.to(dtype) 不动它们：scale 永远是 bfloat16
    """

    packed: Tensor
    scale: Tensor
    zero: Tensor | None

    def __init__(
        self,
        rows: int,
        columns: int,
        form: WeightFormat,
        stored: Packed | None = None,
        method: str = "rtn",
    ) -> None:
        super().__init__()
        # 每组几个由格式与行长一起定：一行一组时，就是行长
        self.rows, self.columns, self.form, self.method = rows, columns, form, method
        self.bits, self.group_size = form.bits, form.group_of(columns)
        # 校准数据上输出差了几成，见 inference/block_by_block.py；没有校准过就不知道，也不存盘
        self.output_error: float | None = None
        if stored is None:
            # 形状由格式定，数随后换上来
            groups, kind = form.n_groups(columns), torch.uint8 if form.bits == 4 else torch.int8
            width = self.group_size * form.bits // 8
            stored = Packed(
                torch.zeros(rows, groups, width, dtype=kind),
                torch.zeros(rows, groups, dtype=torch.bfloat16),
                torch.zeros(rows, groups, dtype=torch.int8) if form.zero_points else None,
            )
        self.register_buffer("packed", stored.packed)  # (N, G, g/2) uint8 或 (N, G, g) int8
        self.register_buffer("scale", stored.scale)  # (N, G) bfloat16
        self.register_buffer("zero", stored.zero)  # (N, G) int8 或 None

    @property
    def stored(self) -> Packed:
        """三样张量，就是模型里的那一份。

        .to() 之后缓冲区会换成新的张量，所以每次现取，不要留着
        """
        # 准备好推理的模型，编码几行并排地摆着（inference/integer_blocks.py），这里换回按行的
        width = self.group_size * self.bits // 8
        packed = self.packed.reshape(-1, self.scale.shape[1], width)[: self.rows]
        return Packed(packed, self.scale, self.zero)

    @property
    def weight(self) -> Tensor:
        """还原出来的 Ŵ (N, K)，float32；每次现算，给看的、合并的、导出的用。

        只读：改它返回的张量，改不到存着的 q 与 s
        """
        return decode(self.stored, self.columns)

    def share(self, other: PackedWeight) -> None:
        """用另一处的三样张量：输出层与词嵌入共用一张表。

        换设备之后要重来一次：.to() 给两处各做一份
        """
        self.packed, self.scale, self.zero = other.packed, other.scale, other.zero

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedWeight:
        """.to()、.half() 都走这里：设备跟着走，类型不变；转成别的类型，尺子就变了。"""
        kept = self.scale
        super()._apply(fn, recurse)
        device = self.packed.device
        # 从 meta 上来的（to_empty）还没有数，只有形状
        empty = kept.device.type == "meta"
        self.scale = torch.empty_like(kept, device=device) if empty else kept.to(device)
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """存盘的总是按行的；与别处共用一份的，换回来也只有一份。"""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.packed.ndim != 3:
            # 记在收集的字典上：另一处来存时，拿到的是同一个张量，写文件的就认得出来
            rows = getattr(destination, "__dict__", {}).setdefault("rows", {})
            address = self.packed.data_ptr()
            if address not in rows:
                rows[address] = self.stored.packed.contiguous()
            destination[f"{prefix}packed"] = rows[address]

    def n_bytes(self) -> int:
        """三样一共占多少字节。

        公式：N·row_bytes(K)，见 WeightFormat；偏置不算，它没有量化
        """
        return sum(part.nbytes for part in self.stored if part is not None)

    def n_weights(self) -> int:
        """装着多少个权重；补的零不算。"""
        return self.rows * self.columns

    def extra_repr(self) -> str:
        """打印模型时看得出是几比特、多大一组。

        例：24×70, bits=4, group_size=64, method=rtn
        """
        # 没有零点的不提
        zeros = ", zero_points" if self.form.zero_points else ""
        form = f"bits={self.bits}, group_size={self.group_size}{zeros}, method={self.method}"
        return f"{self.rows}×{self.columns}, {form}"


class _FrozenProduct(torch.autograd.Function):
    """y = xŴᵀ：前向还原一次、反向再还原一次，中间不留。

    形状：x (…, K) → (…, N)
    autograd 自己来的话，会把 Ŵ 存到反向：每层一份全尺寸的权重，四比特就白量化了
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
        # 这几样本来就在模型里，存的只是引用；
        # 没有零点时存的是 None，取回来也是
        ctx.save_for_backward(packed, scale, zero)
        ctx.dtype, ctx.columns = x.dtype, x.shape[-1]
        weight = decode(Packed(packed, scale, zero), ctx.columns, x.dtype)  # (N, K)
        # 前面几维并成一维：一次矩阵乘法
        output = product(x.reshape(-1, x.shape[-1]), weight.t())
        return output.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> Any:
        # ∂L/∂x = G·Ŵ；补的零列不在里面，所以记着前向有几列
        weight = decode(Packed(*ctx.saved_tensors), ctx.columns, ctx.dtype)
        # 只有 x 有梯度；三样整数的位置交回 None
        grad_x = product(slope.reshape(-1, slope.shape[-1]), weight)
        return grad_x.view(*slope.shape[:-1], ctx.columns), None, None, None


class QuantizedLinear(PackedWeight):
    """整数权重的 nn.Linear：y = xŴᵀ + b，Ŵ 冻结，偏置原样。

    形状：x (…, K) → (…, N)
    类型：自动混合精度时在 autocast 的类型里乘，否则用 x 的；输出与乘法同类型
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        form: WeightFormat,
        bias: nn.Parameter | None = None,
        stored: Packed | None = None,
        method: str = "rtn",
    ) -> None:
        super().__init__(out_features, in_features, form, stored, method)
        # 名字与 nn.Linear 一样：挑层、装 LoRA 的都照它找
        self.in_features, self.out_features = in_features, out_features
        self.bias = bias

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        form: WeightFormat,
        stored: Packed | None = None,
        method: str = "rtn",
    ) -> QuantizedLinear:
        """由普通的线性层造；stored 是别的办法挑好的 q，None 就直接取整。

        错误：权重里有 NaN 或无穷大 → ValueError
        """
        # 没有给，就直接取整
        stored = encode(linear.weight.detach(), form) if stored is None else stored
        sizes = linear.in_features, linear.out_features
        return cls(*sizes, form, linear.bias, stored, method).train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        """y = xŴᵀ + b；(…, K) → (…, N)。"""
        # 自动混合精度不认识我们的 Function，所以自己换类型
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        with torch.autocast(kind, enabled=False):
            # 偏置在乘完之后加，与 nn.Linear 同一个次序
            output: Tensor = _FrozenProduct.apply(x, *self.stored)
            return output if self.bias is None else output + self.bias.to(output.dtype)


class QuantizedEmbedding(PackedWeight):
    """整数的词表：x = Ê[id]，只还原查到的那几行。

    形状：ids (B, T) → (B, T, D)
    类型：输出是 dtype；它跟着 .to() 走，与普通的词表一样决定整个模型的类型
    """

    like: Tensor

    def __init__(
        self,
        rows: int,
        columns: int,
        form: WeightFormat,
        stored: Packed | None = None,
        method: str = "rtn",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(rows, columns, form, stored, method)
        # 空张量替我们记着类型，.to(dtype) 会换它；不进 state_dict
        self.register_buffer("like", torch.empty(0, dtype=dtype), persistent=False)

    @property
    def dtype(self) -> torch.dtype:
        """输出的类型。"""
        return self.like.dtype

    def forward(self, ids: Tensor) -> Tensor:
        """先取行，再还原：一行 D 个数，不必还原整张表。"""
        flat = ids.reshape(-1)  # (B·T,)
        # 取出来的几行也是一个小矩阵，照样还原
        packed, scale, zero = self.stored
        some = Packed(packed[flat], scale[flat], None if zero is None else zero[flat])
        rows = decode(some, self.columns, self.dtype)  # (B·T, D)
        return rows.view(*ids.shape, self.columns)


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """把全名为 `name` 的子模块换成 `module`。

    例：name = "blocks.0.attention.q_proj"，就是 model.blocks[0].attention.q_proj = module
    """
    assert name, "the model cannot be replaced inside itself"
    # 最后一节是属性名，前面的是它所在的模块
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


def quantized_parts(model: nn.Module) -> dict[str, PackedWeight]:
    """全名 → 每个整数权重的模块（线性层与词表），按模型里的先后。"""
    return {name: m for name, m in model.named_modules() if isinstance(m, PackedWeight)}


def quantized_layers(model: nn.Module) -> dict[str, QuantizedLinear]:
    """全名 → 每个整数权重的线性层；没有量化过的模型给出空的。

    装了 LoRA 的，名字里多一节 base_layer
    """
    return {n: m for n, m in quantized_parts(model).items() if isinstance(m, QuantizedLinear)}


def same_as_the_restored() -> None:
    """前向、反向都与「用 Ŵ 的普通线性层」相同。

    写出来的反向与 autograd 的，差的只是舍入
    """
    # 三种格式，一层带偏置的
    linear = nn.Linear(70, 24)  # 70 不是 64 的倍数：最后一组补了零
    x = torch.randn(2, 5, 70, requires_grad=True)
    print("① 与用 Ŵ 直接算的相差多少")
    for form in (WeightFormat(4, 64), WeightFormat(8, None), WeightFormat(4, 16, True)):
        layer = QuantizedLinear.from_linear(linear, form)
        # 标准答案：先还原，再交给 autograd
        wanted = nn.functional.linear(x, layer.weight, linear.bias)
        (found,) = torch.autograd.grad(layer(x).square().sum(), x)
        (slope,) = torch.autograd.grad(wanted.square().sum(), x)
        # 两个最大的差
        gaps = (layer(x) - wanted).abs().max(), (found - slope).abs().max()
        print(f"   {layer.extra_repr():<52} 输出 {gaps[0]:.0e}  ∂L/∂x {gaps[1]:.0e}")
        assert max(gaps) < 1e-4


def nothing_large_is_kept() -> None:
    """反向要的 Ŵ 不存：存下的只有模型里本来就有的。

    办法：autograd 每存一个张量就叫一声，看它是谁的内存
    """
    layer = QuantizedLinear.from_linear(nn.Linear(256, 128, bias=False), WeightFormat())
    # autograd 存一个，记一个
    kept: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        """autograd 要存一个张量时叫它。"""
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        layer(torch.randn(3, 256, requires_grad=True))
    print(f"② 为反向存的：{[tuple(t.shape) for t in kept]}，都是 q 与 s 的引用")
    assert {t.data_ptr() for t in kept} == {layer.packed.data_ptr(), layer.scale.data_ptr()}


def bytes_as_the_formula_says() -> None:
    """占多少字节，照公式。

    组越小、有零点，尺子就越占地方
    """
    print("③ 1024×1024 的权重，float32 是 4,194,304 字节")
    for form in (WeightFormat(8), WeightFormat(4), WeightFormat(4, 128), WeightFormat(4, 32, True)):
        layer = QuantizedLinear.from_linear(nn.Linear(1024, 1024, bias=False), form)
        size = layer.n_bytes()
        # 2²⁰ 个权重
        print(f"   {layer.extra_repr():<58}{size:>9,} 字节，{8 * size / 2**20:.3f} bit 一个")
        assert size == 1024 * form.row_bytes(1024)


def a_table_for_both_ends() -> None:
    """词表与输出层共用：查到的行，与整张还原的那一行逐比特相同。"""
    # 一百个词，每个 64 维
    stored = encode(torch.randn(100, 64), WeightFormat(8))
    table = QuantizedEmbedding(100, 64, WeightFormat(8), stored)
    head = QuantizedLinear(64, 100, WeightFormat(8), stored=stored)
    ids = torch.randint(100, (2, 7))
    assert torch.equal(table(ids), head.weight[ids])
    # 输出的类型跟着走，尺子的不跟
    half = table.to(torch.bfloat16)
    print(f"④ 共用的词表：{table.n_bytes():,} 字节；.to(bfloat16) 之后输出 {half(ids).dtype}")
    assert (half(ids).dtype, half.scale.dtype) == (torch.bfloat16, torch.bfloat16)


def demo() -> None:
    """输出与梯度、为反向存了什么、占多少字节、词表。

    每一步都自己断言
    """
    same_as_the_restored()
    nothing_large_is_kept()
    bytes_as_the_formula_says()
    a_table_for_both_ends()


if __name__ == "__main__":
    run_demo(demo)
