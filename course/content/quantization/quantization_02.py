import torch
from torch import Tensor


def zero_point_uint8(w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """
    zh: 每行把 [low, high] 铺满 0 … 255；范围总要包住 0，于是 0 恰好落在一格上（零点 z）：
    zh: low = min(最小的数, 0)，high = max(最大的数, 0)
    en: Each row spreads [low, high] over 0 … 255; the range always includes 0, so that 0 has a code
    en: of its own (the zero point z): low = min(smallest, 0), high = max(largest, 0)

    s = (high − low) / 255,   z = round(−low / s),   q = clamp(round(w / s) + z, 0, 255)

    w (N, K) → q (N, K) uint8, s (N,), z (N,) uint8
    """
    # >>>
    low = w.amin(dim=1).clamp(max=0.0)
    high = w.amax(dim=1).clamp(min=0.0)
    scale = (high - low) / 255
    zero = torch.round(-low / scale)
    codes = torch.round(w / scale[:, None]) + zero[:, None]
    return codes.clamp(0, 255).to(torch.uint8), scale, zero.to(torch.uint8)
    # <<< raise NotImplementedError


def dequantize_uint8(q: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """
    zh: 还原：ŵ = s·(q − z)；q 与 z 都是 uint8，没有负数
    en: Restore: ŵ = s·(q − z); q and z are uint8, which has no negative numbers

    q (N, K) uint8, s (N,), z (N,) uint8 → (N, K)
    """
    # >>>
    steps = q.to(scale.dtype) - zero[:, None]
    return steps * scale[:, None]
    # <<< raise NotImplementedError
