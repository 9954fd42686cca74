r"""整数的权重有许多分法，C++ 只写一种，怎么办？——把别的都化成它，一个权重也不变。

量化时每 g 个权重共用一把尺子（见 transformer_basics/integer_weights.py），g 可以是 16、32、64、
128，也可以一行一把。C++ 里的乘法（kernels/products.h）每次拿 64 个或 32 个编码，正好装满寄存器，
乘一个刻度；每种 g 都写一份，要写许多份。好在组可以切小：

    g = 128   ▐▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▌ s                一把尺子量 128 个
    化成 64   ▐▒▒▒▒▒▒▒▒▌ s ▐▒▒▒▒▒▒▒▒▌ s            同一把尺子抄两份，各量 64 个

$$\hat w = s\,(q - z) \quad\text{里的 } q、s、z \text{ 都没有变，变的只是 } s、z \text{ 存了几份}$$

代价是多存几份刻度：g = 128 化成 64，每个权重从 4.125 比特变成 4.25，多读百分之三。
一行一把的，行长不一定是 64 的倍数：末尾补零，零乘什么都是零。16 个一组的切不开、也并不拢，
就不化，那一层留给 PyTorch。

四比特的，两个编码挤在一个字节里，谁与谁挤也由组定：组里的前一半在低四位，后一半在高四位。
组一切小，挤法就变了，所以要拆开再挤一遍；八比特的一个字节一个，切小之后字节一个也不动。

零点也一样：q 与 z 在同一把尺子上，尺子抄几份，零点就抄几份。C++ 里减去零点不必逐个减：

$$\sum_k s\,(q_k - z)\,x_k = s \Big(\sum_k q_k x_k - z \sum_k x_k\Big)$$

括号里右边的那个和与权重无关，一个输入只算一次，给所有的行用。

乘的时候几行并排走（见 kernels/integers.h），所以存的也要并排：每行取几个字节，挨着放：

    按行存　行 0 ▐ a₀ a₁ a₂ a₃ …　　　　并排　▐ a₀ a₁ a₂ a₃ b₀ b₁ b₂ b₃ … a₄ a₅ …
    行 1 ▐ b₀ b₁ b₂ b₃ …　　　　　　　　行 0 的四个、行 1 的四个、……，再轮到行 0

几行一片、一次取几个，由处理器的指令定，问编译好的库就知道。字节一个也没有变，只是换了地方，
所以还能当成原来的样子读：换回次序的视图（permute）就是，不必留两份。

为什么不在量化的时候就只许 64？存盘的格式要给大家用：一行一把的最省，16 个一组的最准，128 个一组
是许多发布的模型的取法。写算子的人挑自己喜欢的排法，是准备时的事，不该让存盘的格式迁就。

改哪里：让 C++ 多认一种组 → BLOCKS，与 kernels/products.h 里 multiply 的分支。
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from foundation.demonstration import run_demo
from foundation.large_pages import padded
from transformer_basics.integer_weights import Packed, WeightFormat, decode, encode, pack, unpack
from transformer_basics.quantized_linear import PackedWeight

__all__ = ["BLOCKS", "block_of", "in_rows", "integer_block", "room_for", "side_by_side"]

BLOCKS = (64, 32)  # 大的优先：刻度少，读得少
MOST_LANES = 16  # 一片至多几行：留地方时按它算


def block_of(part: PackedWeight) -> int | None:
    """整数的权重按几个一组交给 C++：64、32；化不成的是 None。

    一行一组的，行长多少都行：末尾补零，零乘什么都是零
    """
    if part.packed.device.type != "cpu":
        return None
    # 大的组切成小的；小的并不成大的，刻度不同
    for block in BLOCKS:
        if part.group_size % block == 0:
            return block
    return 64 if part.form.group_size is None else None


def integer_block(part: PackedWeight, block: int) -> Packed:
    """化成每 block 个一组的三样：编码、刻度、零点；还原出来的权重一个也不变。

    公式：第 i 个小组用第 ⌊i·block / g⌋ 个大组的刻度与零点

    形状：(N, G, …) → 编码 (N, G′, block) 或 (N, G′, block/2)，刻度与零点 (N, G′)
    """
    own = part.stored
    codes = unpack(own.packed).flatten(1)  # (N, G·g)
    # ① 末尾补零，补到 block 的倍数；零点不是 0 时，补的要还原成 0，所以补的是零点。
    #    大的组在末尾补得更多，用不着的几小组去掉
    rows, columns = len(codes), -(-part.columns // block) * block
    extra = columns - codes.shape[1]
    if extra > 0:
        filler = codes.new_zeros(rows, extra) if own.zero is None else own.zero.expand(-1, extra)
        codes = torch.cat((codes, filler), dim=1)
    codes = codes[:, :columns]
    # ② 一组切成几组：刻度与零点各抄几份
    times = -(-part.group_size // block)
    smaller = [None if t is None else t.repeat_interleave(times, dim=1) for t in own[1:]]
    scale, zero = (None if t is None else t[:, : columns // block] for t in smaller)
    assert scale is not None
    return Packed(pack(codes.reshape(rows, -1, block), part.bits), scale, zero)


def side_by_side(stored: Tensor, lanes: int, depth: int) -> Tensor:
    """按行存的换成几行并排：每行取 depth 个字节，lanes 行挨着；行数不够一片的，末尾补零行。

    形状：(N, G, 宽) → (⌈N / lanes⌉, G, 宽 / depth, lanes, depth)，是视图，还没有搬
    刻度与零点一组一个，就是宽为 1、depth 为 1
    """
    stored = F.pad(stored, (0, 0, 0, 0, 0, -len(stored) % lanes))
    # 拆出「第几片、片里第几行」与「第几步、步里第几个」，再把行挪到步的后面
    groups, width = stored.shape[1:]
    return stored.view(-1, lanes, groups, width // depth, depth).permute(0, 2, 3, 1, 4)


def in_rows(arranged: Tensor) -> Tensor:
    """并排摆着的换回按行的：(片, G, 步, 行, depth) → (片, 行, G, 步, depth)，一个字节也不搬。"""
    return arranged.permute(0, 3, 1, 2, 4)


def room_for(layer: Any) -> int:
    """一层的权重在大块里占多少字节；整数的按最坏的算（补到 64 的倍数，32 个一把尺子）。"""
    # 浮点的一个不多；整数的还不知道化成什么样，宁可多要一点
    if not isinstance(layer, PackedWeight):
        return padded(layer.weight.nbytes)
    rows = layer.rows + -layer.rows % MOST_LANES
    columns = padded(layer.columns + layer.group_size)
    codes, scales = rows * columns * layer.bits // 8, rows * columns // 32
    return padded(codes) + padded(2 * scales) + padded(scales)


def demo() -> None:
    """几种分法化成一种，还原出来逐个相等；再看各多占多少。"""
    weight = torch.randn(8, 384)
    print("① 分法　　　　化成　每个权重几比特　还原出来与原来相差")
    for bits, group, zeros in ((4, 64, False), (4, 128, False), (4, None, True), (8, 96, False)):
        form = WeightFormat(bits, group, zeros)
        part = PackedWeight(8, 384, form, encode(weight, form))
        block = block_of(part)
        assert block is not None
        stored = integer_block(part, block)
        # 与没有化过的还原比：不是「差不多」，是一个不差
        gap = float((decode(stored, 384) - part.weight).abs().max())
        before, after = bits_each(part.stored), bits_each(stored)
        name = f"{bits} 比特、{'一行' if group is None else group} 一组"
        print(f"   {name:　<10} {block}　 {before:.3f} → {after:.3f}　　　{gap}")
        assert gap == 0.0
        assert after >= before
    # 16 个一组：比 32 还小，切不开；
    # 相邻的两组刻度不同，也并不拢
    form = WeightFormat(4, 16)
    part = PackedWeight(8, 384, form, encode(weight, form))
    print(f"② 16 个一组：{block_of(part)}，留给 PyTorch")
    assert block_of(part) is None
    # 一行 100 个、一行一把：补到 128
    form = WeightFormat(8, None)
    part = PackedWeight(8, 100, form, encode(weight[:, :100], form))
    stored = integer_block(part, 64)
    print(f"③ 一行 100 个，一行一把：补成 {stored.packed.shape[1]} 组、每组 64 个")
    assert stored.packed.shape[:2] == stored.scale.shape == (8, 2)
    assert torch.equal(decode(stored, 100), part.weight)
    # 并排：三行、每行四个字节，两行一片、一次两个
    rows = torch.arange(12, dtype=torch.int8).view(3, 1, 4)
    arranged = side_by_side(rows, lanes=2, depth=2).contiguous()
    print(f"④ 两行并排：{arranged.flatten().tolist()}")
    assert arranged.flatten().tolist() == [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 0, 0, 10, 11, 0, 0]
    assert torch.equal(in_rows(arranged).reshape(-1, 1, 4)[:3], rows)


def bits_each(stored: Packed) -> float:
    """每个权重平均占几比特（8 × 384 个）。"""
    return 8 * sum(t.nbytes for t in stored if isinstance(t, Tensor)) / (8 * 384)


if __name__ == "__main__":
    run_demo(demo)
