r"""我们的整数怎样一个不差地写进 GGUF？——每 32 个一段，正好就是 llama.cpp 的 q4_0 与 q8_0。

    我们的                                llama.cpp 的（每 32 个一块）
    ŵ = s·q，每 g 个一把尺子 s            ŵ = d·q，每 32 个一把尺子 d
    s  bfloat16                           d  float16
    q  −8 … 7     一个字节两个            q4_0：d 2 字节，16 字节装 32 个（低四位是前一半）
    q  −128 … 127 一个字节一个            q8_0：d 2 字节，32 字节装 32 个

$$g = 32\,k:\quad \text{我们的一组} = k\ \text{块，各块的}\ d\ \text{都等于}\ s$$

bfloat16 有 8 位有效数字，float16 有 11 位，只要大小在 float16 的范围里（大于 2⁻¹⁷ 就一位不丢），
d 就等于 s，两边还原出来的数逐比特相同。不满足的（组不是 32 的倍数、有零点、尺子太小），照旧还原成
f16：写得出，只是不再是整数。

为什么不直接拿还原的权重去量化？q8_0 的编码用 max/127 定尺子，我们用 m/−128：同样的数再量一遍，
格子对不齐，又多一次舍入。所以要原来的尺子，见 dequantization.py 的 scales_as_weights。

次序也一样：我们一组里的前一半放低四位、后一半放高四位；他们一块里也是前十六个放低四位。一组 64 个时
两边的字节不同（我们的一半是 32 个），所以要拆开再排；还原出来的数没有变。

一块 q4_0 的字节：
    d  d | q₁₆q₀  q₁₇q₁  …  q₃₁q₁₅      每个字节：低四位 q_k + 8，高四位 q_{16+k} + 8

出处：ggml 的 block_q4_0、block_q8_0。
改哪里：多一种整数的格式 → FORMATS 里加一行；哪些写得进去 → `integers_of`。
"""

from __future__ import annotations

from typing import Any

import numpy as np

from foundation.demonstration import run_demo
from gpt_model.gguf_blocks import BLOCK, BLOCK_BYTES, Array

__all__ = ["FORMATS", "encode_integers", "integers_of"]

# 名字 → 最小、最大的格数，一块几个字节
FORMATS = {"q4_0": (-8, 7, 2 + BLOCK // 2), "q8_0": (-128, 127, BLOCK_BYTES)}


def integers_of(values: Array, scales: Array) -> tuple[str, Array, Array] | None:
    """值与尺子 → (格式, 每块的 d, 每块的 q)；写不进去的是 None。

    形状：两个 (N, K) float32 → d (块, 1) float16，q (块, 32) int8
    约定：d·q 与 values 逐比特相同才算写得进去
    """
    # ① 行长不是 32 的倍数，或有的没有尺子（NaN）：写不进去
    if values.ndim != 2 or values.shape[1] % BLOCK or np.isnan(scales).any():
        return None
    blocks, rules = values.reshape(-1, BLOCK), scales.reshape(-1, BLOCK)
    # ② 一块里只能有一把尺子，而且 float16 装得下
    exact = rules[:, :1]
    with np.errstate(over="ignore"):
        half: Array = exact.astype(np.float16)
    if (rules != exact).any() or (half.astype(np.float32) != exact).any():
        return None
    # ③ 全零的组尺子是 0，除不得，q 也是 0
    safe = np.where(exact == 0, np.float32(1.0), exact)
    # 值本来就是 尺子 × 整数，除回去至多差一点舍入
    codes = np.rint(blocks / safe)
    # 乘回来不一样：有零点的，或别的办法来的
    if (codes * exact != blocks).any():
        return None
    # ④ 装得下的格式里，取小的
    for name, (lowest, highest, _) in FORMATS.items():
        if codes.min() >= lowest and codes.max() <= highest:
            return name, half, codes.astype(np.int8)
    return None


def encode_integers(kind: str, half: Array, codes: Array, rows: int) -> Array:
    """按格式排成字节：(N, K/32·一块的字节数) uint8。

    约定：小端；q4_0 的低四位是块里的前十六个，高四位是后十六个，都加 8
    """
    # 尺子在前，格数在后
    head: Array = half.astype("<f2").view(np.uint8)  # (块, 2)
    body: Array = codes.view(np.uint8)  # 八比特：补码的字节就是它
    if kind == "q4_0":
        # 四比特：挪到 0…15，前一半放低四位，后一半放高四位
        nibbles: Array = (codes + 8).astype(np.uint8)
        body = nibbles[:, : BLOCK // 2] | (nibbles[:, BLOCK // 2 :] << 4)
    whole: Array = np.concatenate((head, body), axis=1).reshape(rows, -1)
    return whole


def decode_q4_0(encoded: Array) -> Array:
    """把 q4_0 的字节读回 float32：x̂ = d·(nibble − 8)；演示与测试用。

    形状：(…, n/32·18) uint8 → (…, n) float32
    """
    blocks = encoded.reshape(-1, FORMATS["q4_0"][2])
    scale = np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float32)  # (块, 1)
    # 低四位是前十六个，高四位是后十六个
    nibbles = np.concatenate((blocks[:, 2:] & 15, blocks[:, 2:] >> 4), axis=1)
    decoded: Array = (scale * (nibbles.astype(np.float32) - 8)).reshape(*encoded.shape[:-1], -1)
    return decoded


def demo() -> None:
    """四比特、八比特各写一遍，读回逐比特相同；写不进去的几种。"""
    import torch

    from gpt_model.gguf_blocks import decode_q8_0
    from transformer_basics.integer_weights import WeightFormat, decode, encode

    # 训练过的权重大约是这么大
    torch.manual_seed(0)
    weight = torch.randn(16, 128) * 0.02

    def parts(form: WeightFormat) -> tuple[Array, Any]:
        """还原的值与每个权重的尺子。

        形状：都是 (16, 128)；一组里的尺子相同
        """
        stored = encode(weight, form)
        wide = stored.scale.float().repeat_interleave(form.group_of(128), dim=1)[:, :128]
        return decode(stored, 128).numpy(), wide.numpy()

    # ① 一组 64 个就是两块
    for form, back in ((WeightFormat(4, 64), decode_q4_0), (WeightFormat(8, 64), decode_q8_0)):
        values, scales = parts(form)
        found = integers_of(values, scales)
        # 两种都写得进去，而且是各自的格式
        assert found is not None
        kind, half, codes = found
        # 按字节排好，再用格式自己的读法读回来
        data = encode_integers(kind, half, codes, len(values))
        again = back(data)
        assert np.array_equal(again, values)
        print(
            f"① {form.bits} 比特 → {kind}：{data.nbytes} 字节，读回逐比特相同；q = {codes[0, :5]}"
        )

    # ② 写不进去的：
    # 给 None，由调用者还原成 f16
    values, scales = parts(WeightFormat(4, 48))
    print(f"② 48 个一组，一块里有两把尺子 → {integers_of(values, scales)}")
    assert integers_of(values, scales) is None
    tiny, rules = (np.float32(2.0**-30) * part for part in parts(WeightFormat(4, 64)))
    print(f"   尺子小到 float16 装不下      → {integers_of(tiny, rules)}")
    assert integers_of(tiny, rules) is None
    values, scales = parts(WeightFormat(4, 64))
    scales[0, 0] = np.nan
    print(f"   有的权重没有尺子             → {integers_of(values, scales)}")
    assert integers_of(values, scales) is None


if __name__ == "__main__":
    run_demo(demo)
