r"""缓存比模型还大时，每个数存成一个字节行不行？——INT8 键值缓存。

每个词元、每个头的键（与值）是一个 d 维向量，各配一个尺度 s，除以它再四舍五入成 −127 … 127：

$$s = \frac{\max_i |x_i|}{127}, \qquad c_i = \mathrm{round}(x_i / s), \qquad \hat x_i = s\,c_i,
  \qquad |x_i - \hat x_i| \le \frac{s}{2}$$

    append(k, v)                        存下的                          取出的
    (B, G, T, d) ──÷ s，四舍五入──►  编码 int8  (B, G, C, d)  ──× s──►  (B, G, S, d)
                                     尺度 fp32  (B, G, C, 1)

内存：一个头一个词元，从 4d 字节（float32）变成 d + 4 字节；d = 64 时是 3.8 分之一。

误差有界：打分是 q·k/√d，键各差至多 s/2，于是一个分数至多差

$$|q\cdot k - q\cdot \hat k| / \sqrt d \le \|q\|_1 \, s / (2\sqrt d)$$

值的误差更直接：权重之和是 1，输出的每一维至多差 s/2。演示里两样都量给你看。

怎样分组（哪些数共用一个尺度），KIVI 的选法与这里的不同：

  每词元每头（这里）  来一个词元就能当场存好，不必等；追加、截断、重排都只是搬行
  每通道（KIVI 的键） 键里常有几维特别大（离群通道，outlier channel），被它撑大的尺度，
                      别的维就粗了；按通道分组没有这个毛病，但一组要凑满几十个词元才能定尺度，
                      没凑满的先留成浮点数（residual），代码里就多出两种存法与一条边界
  结论              只有 2 至 4 位时非按通道不可；8 位的余地大，演示里离群 20 倍的键也够用

不带零点（zero point）：键与值的分布大致对称，省下一个数与一次加法。

为什么刚存进去的也取存粗了的？切成几段喂、一个一个喂，看到的就都是同样的数，
结果与怎样分段无关；若新来的用原样、旧的用存粗的，预填切在哪里就会改变结果。

论文：Liu 等 2024《KIVI》(arXiv:2402.02750)；Hooper 等 2024《KVQuant》(arXiv:2401.18079)

改哪里：
  · 想换分组或位数——to_codes 与 from_codes 这一对；内存的公式在 gpt_model/memory.py。
  · 权重的量化是另一课：inference/quantization.py。
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from foundation.demonstration import run_demo
from transformer_basics.kv_cache import KVCache, StaticCache

__all__ = ["QuantizedCache", "from_codes", "to_codes"]

LARGEST = 127  # 不用 −128：两边对称，x 与 −x 的编码恰好相反


def to_codes(x: Tensor) -> tuple[Tensor, Tensor]:
    """每行一个尺度，存成 int8。

    公式：s = max|x|/127，c = round(x/s)；全零的行 s = 0，c = 0
    形状：x (…, d) → 编码 (…, d) int8，尺度 (…, 1) float32
    错误：NaN、∞ 不拦：它们的尺度也是 NaN、∞，取出来仍看得出坏了
    """
    # bf16 只有 8 位有效数字，尺度与商都要在 float32 里算
    x = x.float()
    scale = x.abs().amax(dim=-1, keepdim=True) / LARGEST  # (…, 1)
    # 全零的行除以 1，免得 0/0；商可能因舍入略大于 127，所以要截
    codes = (x / scale.masked_fill(scale == 0, 1.0)).round().clamp(-LARGEST, LARGEST)
    return codes.to(torch.int8), scale


def from_codes(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """取出近似的数：x̂ = s·c；先在 float32 里乘，再变成模型的 dtype。"""
    return codes.float().mul_(scale).to(dtype)


class QuantizedCache(KVCache):
    """INT8 的缓存：编码与尺度各是一个 StaticCache，截断、重排、容量检查都交给它们。

    形状：编码 (B, G, C, d) int8，尺度 (B, G, C, 1) float32；取出 (B, G, S, d)
    类型：dtype 是取出来的类型，与模型相同
    代价：每步把全部 S 个乘回浮点数，是临时的一份，一层用完就放；读的少了四分之三，却又写出、
          读回一份浮点的，所以省内存、不省时间（benchmarks/RESULTS.md）
    错误：与 StaticCache 相同：超出容量、行数不符、带着梯度 → ValueError，缓存保持原样
    """

    def __init__(
        self,
        batch_size: int,
        n_kv_heads: int,
        capacity: int,
        head_dim: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        # 两份的行、头、容量都相同，只是最后一维：编码 d 个，尺度 1 个
        self.dtype = dtype
        shape = batch_size, n_kv_heads, capacity
        self._codes = StaticCache(*shape, head_dim, torch.int8, device)
        self._scales = StaticCache(*shape, 1, torch.float32, device)

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """存成 int8，再把全部取出来：(B, G, T, d) → (B, G, S, d)。"""
        # 四舍五入没有梯度；编码是整数，StaticCache 看不出原来带着梯度，所以在这里拦
        if key.requires_grad or value.requires_grad:
            raise ValueError(
                "QuantizedCache keeps no gradients: use torch.no_grad(), torch.inference_mode() "
                "or a GrowingCache"
            )
        (key_codes, key_scale), (value_codes, value_scale) = to_codes(key), to_codes(value)
        # 编码先存：容量不够时在这里就停下，两份都没有动
        keys, values = self._codes.append(key_codes, value_codes)
        key_scales, value_scales = self._scales.append(key_scale, value_scale)
        self.length = self._codes.length
        # 旧的也要乘回来：注意力只认得浮点数
        return (
            from_codes(keys, key_scales, self.dtype),  # (B, G, S, d)
            from_codes(values, value_scales, self.dtype),  # (B, G, S, d)
        )

    def rewrite(self, change: Callable[[Tensor], Tensor]) -> None:
        """编码与尺度一起改：不取出来，所以不会再舍入一次。"""
        self._codes.rewrite(change)
        self._scales.rewrite(change)

    def truncate(self, length: int) -> None:
        """编码与尺度一起截断。"""
        self._codes.truncate(length)
        self._scales.truncate(length)
        self.length = length


def the_error_is_bounded() -> None:
    """随机的键、值、查询：实际的误差与上界并排，再看内存。"""
    query, key, value = (torch.randn(1, 4, n, 64) for n in (16, 512, 512))
    cache = QuantizedCache(1, 4, 512, 64)
    keys, values = cache.append(key, value)
    # 尺度由每行最大的数定，所以每行的界各不相同
    half = to_codes(key)[1] / 2, to_codes(value)[1] / 2  # s/2，(1, 4, 512, 1)
    worst = float(((keys - key).abs() / half[0]).max())
    print(f"① 每个数的误差至多 s/2：最坏的一个用掉了上界的 {worst:.1%}")
    assert 0.9 < worst <= 1 + 1e-4
    # 分数的界：‖q‖₁·s/(2√d)；各维的误差有正有负，互相抵消，所以离界很远
    exact, rough = (query @ k.transpose(-2, -1) / 8 for k in (key, keys))
    bound = query.abs().sum(-1, keepdim=True) * half[0].transpose(-2, -1) / 8
    found = (exact - rough).abs()
    print(f"   分数最多差 {float(found.max()):.4f}，公式给的界是 {float(bound.max()):.4f}")
    assert bool((found <= bound + 1e-6).all())
    # 权重之和是 1，所以输出的误差不超过值的 s/2（权重自己的误差另算，这里用同一份权重）
    weights = exact.softmax(-1)
    gap = (weights @ value - weights @ values).abs().max()
    print(f"   输出最多差 {float(gap):.4f}，界是 {float(half[1].max()):.4f}")
    assert gap <= half[1].max()
    # 一个头一个词元 64 + 4 字节
    stored = cache._codes._keys.nbytes + cache._scales._keys.nbytes
    print(f"   键占 {stored / 1024:.0f} KiB，float32 要 {key.nbytes / 1024:.0f} KiB，", end="")
    print(f"{key.nbytes / stored:.2f} 分之一")
    assert key.nbytes / stored == 4 * 64 / (64 + 4)


def rounded(x: Tensor, bits: int, dim: int) -> Tensor:
    """沿 dim 共用尺度、存成 bits 位，再取出来；只给下面比较分组用。"""
    # 去掉最小的那个负数，两边对称
    largest = 2 ** (bits - 1) - 1
    scale: Tensor = x.abs().amax(dim=dim, keepdim=True) / largest
    return (x / scale).round() * scale


def which_numbers_share_a_scale() -> None:
    """有一维大 20 倍的键：按词元还是按通道共用尺度，各差多少。

    比的是不离群的那些维：大的那一维自己总是准的，被它连累的是别人
    """
    # 一个头、128 个词元、64 维，第 7 维离群
    key = torch.randn(1, 1, 128, 64)
    key[..., 7] *= 20
    others = [i for i in range(64) if i != 7]
    print("② 一个离群通道（大 20 倍），其余各维的相对误差：")
    errors = {}
    for bits in (8, 4, 2):
        for name, dim in (("每词元", -1), ("每通道", -2)):
            gap = (rounded(key, bits, dim) - key)[..., others].norm() / key[..., others].norm()
            errors[name, bits] = float(gap)
        print(f"   {bits} 位　每词元 {errors['每词元', bits]:6.1%}　", end="")
        print(f"每通道 {errors['每通道', bits]:6.1%}")
    # 8 位时两种都够用；2 位时按词元的全成了 0，误差就是 100 %，KIVI 因此按通道存键
    assert errors["每词元", 8] < 0.06
    assert errors["每词元", 2] > 0.95 > errors["每通道", 2]


def demo() -> None:
    """误差的界，分组的取舍，再接到注意力里看切成几段是否一样。"""
    from transformer_basics.attention import CausalSelfAttention  # 它不依赖本课，用时才取

    the_error_is_bounded()
    which_numbers_share_a_scale()
    # 分组的注意力：2 个键值头，每头 16 维
    attention, x = CausalSelfAttention(64, 4, n_kv_heads=2), torch.randn(1, 24, 64)
    with torch.no_grad():
        # 三遍：不用缓存、一次喂完、切成 16 段
        exact = attention(x)
        whole = attention(x, cache=QuantizedCache(1, 2, 24, 16))
        cache = QuantizedCache(1, 2, 24, 16)
        pieces = [attention(piece, cache=cache) for piece in x.split([9] + [1] * 15, dim=1)]
    error = float((whole - exact).abs().max() / exact.abs().max())
    gap = float((torch.cat(pieces, dim=1) - whole).abs().max())
    print(f"③ 注意力的输出与精确的相差 {error:.2%}；切成 16 段与一次喂完相差 {gap:.0e}")
    assert error < 0.02
    assert gap < 1e-5


if __name__ == "__main__":
    run_demo(demo)
