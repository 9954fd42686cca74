r"""一个权重怎样变成八个、四个比特？——刻度、零点、取整、打包。

整数没有小数点：−8 … 7 只有十六格。给一组权重配一把尺子 s（scale，一格有多大），存下量出来的格数 q：

$$q = \mathrm{clamp}\!\left(\mathrm{round}\frac{w}{s} + z,\ -2^{b-1},\ 2^{b-1}-1\right), \qquad
  \hat w = s\,(q - z)$$

尺子有两种定法：

    最大绝对值 (absmax)  z = 0，s = m / −2^{b−1}；m 是组里绝对值最大的数，带着符号
    零点 (zero point)    s = (max − min) / (2^b − 1)，z = round(−2^{b−1} − min / s)

absmax 里 s 的符号与 m 相反，于是 m 恰好落在 −8（或 −128）上，一点也不损失；若用 |m|/7，−8 那一格
就永远空着，别的格子都宽了七分之一。零点把整个 [min, max] 铺满十六格，全在一侧的权重才划算；每组
多存一个 z。两种都让 0 恰好是 0：补的零、剪掉的零，还原出来还是零。

误差，一格 = |s|：落在范围里的至多半格；absmax 的另一头没有 +8，夹到 7，最远差一格：

$$|w - \hat w| \le \tfrac{1}{2}|s|, \qquad q = 2^{b-1}-1 \text{ 时} \le |s|$$

尺子多大的范围共用一把（粒度，granularity）：整个矩阵一把 (per tensor)、每行一把 (per channel)、
一行里每 g 个一把 (per group)。一个离群的大数 (outlier) 会把共用它那把尺子的全撑宽，别人挤在中间
几格；组越小，连累的越少，尺子越多：每个权重多 16/g 个比特。

    一行权重 (K,)   分成 G 组        量化                存成
    ┌──────────┐   ┌──────┬──┐    四比特：q + 8 ∈ 0…15   uint8 (N, G, g/2)
    │ w₀ w₁ …  │ → │ g 个 │… │ →  低四位：组里的前一半
    └──────────┘   └──────┴──┘    高四位：组里的后一半
                                  八比特：q 就是一个字节  int8  (N, G, g)

存法，给写算子的人（模型目录里也是这样，名字与类型不会变）：

    packed  uint8 (N, G, g/2) 或 int8 (N, G, g)，行优先。四比特时第 k 个字节的低四位是组里的
            第 k 个，高四位是第 g/2 + k 个，都减 8 才是 q：装进寄存器，与一下、移一下就是两段
            连续的数，不用交错。G = ⌈K/g⌉，最后一组不满的补零
    scale   bfloat16 (N, G)，可以是负的、也可以是零（全零的组）
    zero    int8 (N, G)，没有零点时就没有这个张量；ŵ = scale·(q − zero)

s 为什么用 bfloat16：与 float32 同样的范围，多小的权重都装得下；舍入在取整之前，q 用的就是存下的
那个 s，所以不是误差，只是尺子换了千分之几。absmax、g 是 32 的倍数时，每 32 个一段恰好就是
llama.cpp 的 q4_0 与 q8_0（见 gpt_model/gguf_blocks.py）。

论文：Jacob et al. 2017（零点），arXiv:1712.05877；Dettmers & Zettlemoyer 2023, The case for
      4-bit precision, arXiv:2212.09720
改哪里：换刻度（例如 NF4 的十六个不等距的值）→ `scales_of`、`round_to_codes` 与 `restore`；
        换存法 → `pack` 与 `unpack`；多一种位数 → `BITS`。
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from foundation.checks import check_bool, check_choice, check_int
from foundation.demonstration import run_demo

__all__ = ["BITS", "Packed", "WeightFormat", "decode", "encode", "grouped", "pack", "restore"]
__all__ += ["refuse_non_finite", "round_to_codes", "scales_of", "unpack"]

BITS = (4, 8)


@dataclass(frozen=True)
class WeightFormat:
    """几个比特、几个共用一把尺子、要不要零点。

    group_size：None 就是一行一把；四比特时要是偶数，两半各占一个字节的四位
    错误：位数不是 4 或 8、组太小或是奇数 → ValueError
    """

    bits: int = 4
    group_size: int | None = 64
    zero_points: bool = False

    def __post_init__(self) -> None:
        check_choice("bits", str(self.bits), [str(known) for known in BITS])
        check_bool("zero_points", self.zero_points)
        if self.group_size is not None:
            check_int("group_size", self.group_size, 2)
            if self.group_size % 2:
                raise ValueError(f"group_size must be even, got {self.group_size}")

    @property
    def lowest(self) -> int:
        """最小的格数：−8 或 −128；补码比正的一边多一格。"""
        return -(1 << (self.bits - 1))

    @property
    def highest(self) -> int:
        """最大的格数：7 或 127。"""
        return (1 << (self.bits - 1)) - 1

    def group_of(self, columns: int) -> int:
        """一行有 K 个权重时，一组几个：给定的；一行一组时是 K，奇数就补一个。"""
        return columns + columns % 2 if self.group_size is None else self.group_size

    def n_groups(self, columns: int) -> int:
        """⌈K / g⌉；最后一组可以不满。"""
        return -(-columns // self.group_of(columns))

    def row_bytes(self, columns: int) -> int:
        """一行权重占几个字节：格数（连补的零）、尺子，与零点。"""
        padded = self.n_groups(columns) * self.group_of(columns)
        return padded * self.bits // 8 + self.n_groups(columns) * (2 + self.zero_points)


class Packed(NamedTuple):
    """存下来的三样；形状与类型见本课开头。"""

    packed: Tensor
    scale: Tensor
    zero: Tensor | None


def grouped(weight: Tensor, form: WeightFormat) -> Tensor:
    """(N, K) → (N, G, g) float32，最后一组不满的补零；零量化了还是零。"""
    rows, columns = weight.shape
    # 先要一块全是零的，再把真的抄进去
    shape = rows, form.n_groups(columns), form.group_of(columns)
    wide = weight.new_zeros(rows, shape[1] * shape[2], dtype=torch.float32)
    wide[:, :columns] = weight
    return wide.view(shape)


def scales_of(
    groups: Tensor, form: WeightFormat, shrink: Tensor | float = 1.0
) -> tuple[Tensor, Tensor | None]:
    """每组的尺子与零点：最后一维是一组，前面是什么都行，所以三种粒度都用它。

    公式：见本课开头；范围先乘 c = shrink，小于 1 就是截掉两头
    形状：(…, g) → s (…, 1) bfloat16，z (…, 1) int8 或 None
    """
    # ① absmax：绝对值最大的那个数，带着符号；除以 2 的幂不舍入，舍入只在 bfloat16
    if not form.zero_points:
        where = groups.abs().argmax(dim=-1, keepdim=True)  # (…, 1)
        return (groups.gather(-1, where) * shrink / form.lowest).to(torch.bfloat16), None
    # ② 零点：范围总要包住 0，0 才有自己的格；先除再减，极大的数也不溢出
    low = groups.amin(dim=-1, keepdim=True).clamp_max(0.0) * shrink
    high = groups.amax(dim=-1, keepdim=True).clamp_min(0.0) * shrink
    steps = (1 << form.bits) - 1
    scale = (high / steps - low / steps).to(torch.bfloat16)
    #    用舍入过的 s 定零点；全零的组 s = 0，除不得
    place = torch.where(scale == 0, 0.0, form.lowest - low / scale.float())
    return scale, place.round_().clamp_(form.lowest, form.highest).to(torch.int8)


def round_to_codes(
    groups: Tensor, scale: Tensor, zero: Tensor | None, form: WeightFormat
) -> Tensor:
    """量一量：q = clamp(round(w / s) + z, lowest, highest)。

    形状：(…, g)、(…, 1) → (…, g) int8
    约定：正好半格的取偶数；s = 0（全零的组）除不得，q = z，还原是 0
    """
    step = scale.float()
    codes = torch.where(step == 0, 0.0, groups / step).round_()
    if zero is not None:
        codes += zero
    return codes.clamp_(form.lowest, form.highest).to(torch.int8)


def restore(
    codes: Tensor, scale: Tensor, zero: Tensor | None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """还原：ŵ = s·(q − z)；(…, g)、(…, 1) → (…, g)。

    类型：q − z 不超过 ±255，s 本来就是 bfloat16，两样在 bfloat16 里都精确，乘一次舍入一次
    """
    # 就地做：一份浮点数的矩阵已经不小，
    # 不要有第二份
    values = codes.to(dtype)
    if zero is not None:
        values -= zero
    return values.mul_(scale.to(dtype))


def pack(codes: Tensor, bits: int) -> Tensor:
    """格数 → 存下的字节：(…, g) int8 → 四比特 (…, g/2) uint8，八比特原样。"""
    if bits == 8:
        return codes
    # 挪到 0…15，组里的前一半放低四位，后一半放高四位
    low, high = (codes + 8).to(torch.uint8).chunk(2, dim=-1)
    return low | (high << 4)


def unpack(packed: Tensor) -> Tensor:
    """存下的字节 → 格数 int8；是几比特，类型自己说：uint8 装着两个四比特，int8 是八比特。"""
    if packed.dtype == torch.int8:
        return packed
    # 先接再转，搬的是字节
    return torch.cat((packed & 15, packed >> 4), dim=-1).view(torch.int8) - 8


def encode(weight: Tensor, form: WeightFormat, shrink: Tensor | float = 1.0) -> Packed:
    """直接取整 (round to nearest, RTN)：权重 (N, K) → 存下的三样。

    shrink：(N, G, 1) 或一个数，每组的范围缩到几成
    错误：有 NaN 或无穷大 → ValueError：它会把整组都变成 NaN
    """
    refuse_non_finite(weight)
    groups = grouped(weight, form)  # (N, G, g)
    scale, zero = scales_of(groups, form, shrink)
    codes = round_to_codes(groups, scale, zero, form)
    # 每组一个的，最后一维是 1，存的时候去掉
    return Packed(pack(codes, form.bits), scale[..., 0], None if zero is None else zero[..., 0])


def refuse_non_finite(weight: Tensor) -> None:
    """有 NaN 或无穷大的权重不量化 → ValueError。

    不拦的话：绝对值最大的就是它，整组的尺子都坏了，而 int8 里看不出来
    """
    if not torch.isfinite(weight).all():
        raise ValueError("the weight holds NaN or infinite values and cannot be quantized")


def decode(stored: Packed, columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """`encode` 的逆：→ (N, K)，补的零去掉。"""
    # 补上最后一维，才能与一组里的每个数相乘
    zero = None if stored.zero is None else stored.zero[..., None]
    values = restore(unpack(stored.packed), stored.scale[..., None], zero, dtype)  # (N, G, g)
    return values.flatten(1)[:, :columns]


def one_group_by_hand() -> None:
    """一组八个数，手算得出来：最大的是 −4，所以 s = 0.5。"""
    weight = torch.tensor([[-4.0, 3.9, 0.2, -0.2, 1.0, 0.0, 2.3, -1.1]])
    # 八个数一组，正好一行
    stored = encode(weight, WeightFormat(4, 8))
    back = decode(stored, 8)
    # 依次是：原来的、量出来的格数、还原的
    print(f"① 权重   {[round(v, 2) for v in weight[0].tolist()]}")
    codes = unpack(stored.packed).flatten().tolist()
    print(f"   absmax s = m/−8 = {float(stored.scale):.2f}，q = {codes}")
    print(f"   还原   {back[0].tolist()}；打包成 {stored.packed[0, 0].tolist()} 四个字节")
    # 最大的那个一点不差；3.9 该是 7.8 格，夹到 7，差了将近一格
    assert back[0, 0] == -4.0
    assert back[0, 1] == 3.5
    # 零点：−4 … 3.9 铺满十五格，两头都不夹
    shifted = encode(weight, WeightFormat(4, 8, zero_points=True))
    assert shifted.zero is not None
    print(f"   零点   s = 7.9/15 ≈ {float(shifted.scale):.3f}，z = {int(shifted.zero)}")
    assert decode(shifted, 8)[0, 5] == 0.0  # 0 还是 0


def all_on_one_side() -> None:
    """什么时候零点划算：权重全在一侧，absmax 有一半的格子用不上。"""
    torch.manual_seed(0)
    print("② 相对误差 ‖w − ŵ‖/‖w‖，四比特、64 个一组")
    for name, weight in (("两侧都有", torch.randn(64, 256)), ("全是正的", torch.rand(64, 256))):
        errors = []
        # 先 absmax，后零点
        for zero_points in (False, True):
            form = WeightFormat(4, 64, zero_points)
            errors.append(float((weight - decode(encode(weight, form), 256)).norm()))
        absmax, zero_point = (error / float(weight.norm()) for error in errors)
        print(f"   {name}  absmax {absmax:.4f}  零点 {zero_point:.4f}")
        # 一侧的：十六格全用上，误差减半
        assert name == "两侧都有" or zero_point < 0.6 * absmax


def three_granularities() -> None:
    """同一个矩阵，尺子共用的范围从大到小；每行造两个离群的大数。

    离群的数在真的大模型里很常见，而且集中在几列
    """
    weight = torch.randn(256, 1024)
    weight[:, ::512] *= 20.0
    # 离群的那几个自己不算，看它们连累了别人多少
    rest = torch.ones(1024, dtype=torch.bool)
    rest[::512] = False
    print("③ 一把尺子管多大：其余权重的相对误差（八比特、四比特），每个权重多几比特")
    found: list[float] = []
    for name, size in (("整个矩阵", 256 * 1024), ("一行", 1024), ("64 个", 64), ("16 个", 16)):
        errors = []
        for bits in BITS:
            # 粒度只是怎样把矩阵看成一行行：
            # 整个矩阵一把：把它看成一行
            back = decode(encode(weight.reshape(-1, size), WeightFormat(bits, size)), size)
            gap = (weight - back.view_as(weight))[:, rest]
            errors.append(float(gap.norm() / weight[:, rest].norm()))
        print(f"   {name:　<4}  {errors[1]:.5f}  {errors[0]:.4f}  {16 / size:.4f} bit")
        found.append(errors[0])
    # 尺子越多越准
    assert found == sorted(found, reverse=True)


def demo() -> None:
    """手算一组，比两种定法，比三种粒度；各自断言。"""
    # 每一步都自己断言
    steps: tuple[Callable[[], None], ...]
    steps = (one_group_by_hand, all_on_one_side, three_granularities)
    for step in steps:
        step()


if __name__ == "__main__":
    run_demo(demo)
