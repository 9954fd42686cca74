r"""怎样把 32 个 float32 压成 34 个字节，而误差小得几乎看不见？——GGUF 的 q8_0 分块量化。

一个矩阵里有大数也有小数，全体共用一把尺子，小数就都量成了 0。所以每 32 个一块，各用各的尺子：

$$d = \frac{\max_i |x_i|}{127}, \qquad q_i = \mathrm{round}(x_i / d) \in [-127, 127],
  \qquad \hat x_i = d \cdot q_i$$

    一行 n 个数   │ x₀ … x₃₁ │ x₃₂ … x₆₃ │ …            n 必须是 32 的倍数
                       │           │
    磁盘上        │ d │ q₀ … q₃₁ │ d │ q₃₂ … q₆₃ │ …    d 是 float16，q 是 int8
                   2 B    32 B

一块 32·4 = 128 字节变成 34 字节：每个数 34·8/32 = 8.5 位，是 float32 的 27%。
误差不超过半格：|x − x̂| ≤ d/2，再加上 d 自己存成 float16 的那点舍入。

三种存法在这里都有：

    f32     4 字节      逐比特不变
    f16     2 字节      11 位有效数字；绝对值到 65504 为止，再大就是无穷
    q8_0    1.0625 字节 约 8 位有效数字，相对于块里最大的数

为什么四舍五入要写出来：numpy 的 round 遇到 .5 取偶数（0.5 → 0，1.5 → 2），而格式的
参考实现（C 的 roundf）一律离开 0（0.5 → 1）。差这一点，同一个模型就有两种字节。

文献：Dettmers 等 2022（分块量化，arXiv:2110.02861）；ggml 的 GGUF 规格。
改哪里：加一种存法 → 在 ENCODERS 里加一个函数，ROW_MULTIPLE 里写下它对行长的要求。
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from foundation.demonstration import run_demo

__all__ = [
    "BLOCK",
    "BLOCK_BYTES",
    "ENCODERS",
    "ROW_MULTIPLE",
    "decode_q8_0",
    "encode_f16",
    "encode_f32",
    "encode_q8_0",
]

Array = np.ndarray[Any, Any]

BLOCK = 32  # 一块几个数
BLOCK_BYTES = 2 + BLOCK  # float16 的尺子，加 32 个 int8
LEVELS = 127  # int8 有 −128，但不用它：正负对称，0 才正好是 0
# 一次量化多少块：中间结果有好几份 float32，分批做，内存就与矩阵的大小无关
BLOCKS_AT_ONCE = 1 << 16


def round_away_from_zero(x: Array) -> Array:
    """四舍五入，.5 离开 0；与 C 的 roundf 逐数相同。

    为什么不写 trunc(x + 0.5)：0.49999997 + 0.5 在 float32 里恰好舍入成 1，就进错了位；
    先取整、再看小数部分，两步都没有舍入误差
    """
    whole = np.trunc(x)
    half: Array = whole + np.trunc(2.0 * (x - whole))
    return half


def encode_f32(rows: Array) -> Array:
    """float32：原样，逐比特不变；只保证在内存里是连续的一段。"""
    whole: Array = np.ascontiguousarray(rows, dtype=np.float32)
    return whole


def encode_f16(rows: Array) -> Array:
    """float16：舍入到最近的一个。

    错误：超出 ±65504 的数会变成无穷大 → ValueError，写明那个数
    """
    with np.errstate(over="ignore"):  # 溢出由下面自己查，说得更清楚
        half: Array = rows.astype(np.float16)
    refuse_infinite(half, rows, "float16 ends at 65504")
    return half


def encode_q8_0(rows: Array) -> Array:
    """q8_0：每 32 个数一块，块里最大的数量成 ±127。

    公式：d = max|x| / 127，q = round(x · (1/d))；全 0 的块 d = 0，q = 0
    形状：(…, n) float32 → (…, n/32 · 34) uint8，n 是 32 的倍数
    错误：d 超出 float16 的范围 → ValueError；行长不是 32 的倍数由调用者先查
    """
    assert rows.shape[-1] % BLOCK == 0, rows.shape
    blocks = rows.reshape(-1, BLOCK)
    out: Array = np.empty((len(blocks), BLOCK_BYTES), dtype=np.uint8)
    for start in range(0, len(blocks), BLOCKS_AT_ONCE):
        part: Array = blocks[start : start + BLOCKS_AT_ONCE].astype(np.float32, copy=False)
        # ① 尺子：一格有多大
        scale = np.abs(part).max(axis=1, keepdims=True) / np.float32(LEVELS)  # (块, 1)
        with np.errstate(over="ignore", divide="ignore"):
            inverse = np.float32(1.0) / scale
            half = scale.astype(np.float16)
        # ② 全 0 的块除不得；尺子小到倒数溢出的，存成 float16 也是 0，同样处理
        inverse[~np.isfinite(inverse)] = 0.0
        refuse_infinite(half, scale, "its q8_0 block needs a scale, max / 127, beyond float16")
        # ③ 量出来，四舍五入；乘倒数而不是除，与参考实现逐字节相同
        steps: Array = round_away_from_zero(part * inverse).astype(np.int8)  # (块, 32)
        # ④ 尺子在前，格数在后；GGUF 是小端（little-endian）的
        out[start : start + len(part), :2] = half.astype("<f2").view(np.uint8)
        out[start : start + len(part), 2:] = steps.view(np.uint8)
    return out.reshape(*rows.shape[:-1], -1)


def refuse_infinite(encoded: Array, given: Array, why: str) -> None:
    """存进去变成无穷大的数：说出是多少，而不是存一个会说胡话的模型。"""
    broken = np.isinf(encoded)
    if broken.any():
        worst = float(given[broken].flat[0])
        raise ValueError(f"the value {worst:g} does not fit: {why}; export as f32")


def decode_q8_0(encoded: Array) -> Array:
    """把 q8_0 的字节读回 float32：x̂ = d · q。

    形状：(…, n/32 · 34) uint8 → (…, n) float32
    """
    blocks = encoded.reshape(-1, BLOCK_BYTES)
    scale = np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float32)  # (块, 1)
    steps = np.ascontiguousarray(blocks[:, 2:]).view(np.int8).astype(np.float32)  # (块, 32)
    decoded: Array = (scale * steps).reshape(*encoded.shape[:-1], -1)
    return decoded


# 名字 → 编码的函数；名字就是命令行里写的
ENCODERS: dict[str, Callable[[Array], Array]] = {
    "f32": encode_f32,
    "f16": encode_f16,
    "q8_0": encode_q8_0,
}
# 一行的长度必须是它的倍数；不是的张量改存 f16，与 llama.cpp 自己的做法相同
ROW_MULTIPLE = {"f32": 1, "f16": 1, "q8_0": BLOCK}


def demo() -> None:
    """量一块看看，再看误差的界，以及「各用各的尺子」值多少。"""
    # ① 手算一块：最大的数是 −2.54，所以一格 0.02
    x: Array = np.zeros((1, BLOCK), dtype=np.float32)
    x[0, :5] = [1.0, -2.54, 0.011, 0.009, 0.5]
    encoded = encode_q8_0(x)
    steps = encoded[0, 2:7].view(np.int8).tolist()
    print(f"① x = {x[0, :5].tolist()}，其余为 0")
    print(f"   d = 2.54 / 127 = 0.02，q = {steps}，{x.nbytes} 字节 → {encoded.nbytes} 字节")
    assert steps == [50, -127, 1, 0, 25]  # 0.011 是半格多一点，进 1；0.009 不到半格，是 0
    assert encoded.shape == (1, BLOCK_BYTES)

    # ② 正态分布的权重：误差不超过半格（float16 的尺子再添一点）
    generator = np.random.default_rng(0)
    weights = generator.normal(0.0, 0.02, (256, 1024)).astype(np.float32)
    error = np.abs(decode_q8_0(encode_q8_0(weights)) - weights).reshape(-1, BLOCK)
    step = np.abs(weights).reshape(-1, BLOCK).max(axis=1) / LEVELS
    worst = float((error.max(axis=1) / step).max())
    relative = float(np.sqrt((error**2).mean() / (weights**2).mean()))
    print(f"② σ = 0.02 的权重：最大误差 {worst:.3f} 格，均方根误差 {relative:.2%}")
    assert worst < 0.5 + LEVELS * 2.0**-11  # 127 格，每格因 float16 差至多 2⁻¹¹
    assert relative < 0.01

    # ③ 一个离群的大数：全体共用一把尺子，其余的数就被它拖累
    weights[0, 0] = 5.0
    shared = np.abs(weights).max() / LEVELS
    coarse = np.abs(np.round(weights / shared) * shared - weights)
    fine = np.abs(decode_q8_0(encode_q8_0(weights)) - weights)
    print(f"③ 混进一个 5.0：共用尺子平均误差 {coarse.mean():.5f}，分块 {fine.mean():.5f}")
    assert fine.mean() < coarse.mean() / 20

    # ④ 三种存法的大小与误差
    for name, encode in ENCODERS.items():
        size = encode(weights).nbytes / weights.size
        print(f"④ {name:<5}每个数 {size:.4f} 字节")


if __name__ == "__main__":
    run_demo(demo)
