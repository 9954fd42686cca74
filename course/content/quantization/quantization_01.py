import torch
from torch import Tensor


def absmax_int8(w: Tensor) -> tuple[Tensor, Tensor]:
    """
    zh: 每行一把尺子：s = 这一行绝对值最大的数 ÷ 127，q = round(w / s)，是 int8。全零的行 q 也是零
    en: A ruler for each row: s = the row's largest absolute value ÷ 127, q = round(w / s), as int8.
    en: A row of zeros has codes of zero

    w (N, K) → q (N, K) int8, s (N,)
    """
    # >>>
    scale = w.abs().amax(dim=1) / 127
    step = torch.where(scale == 0, 1.0, scale)
    codes = torch.round(w / step[:, None])
    return codes.clamp(-127, 127).to(torch.int8), scale
    # <<< raise NotImplementedError


def dequantize(q: Tensor, scale: Tensor) -> Tensor:
    """
    zh: 还原：ŵ = s·q，每行用它自己的 s
    en: Restore: ŵ = s·q, each row with its own s

    q (N, K) int8, s (N,) → (N, K)
    """
    # >>>
    return q * scale[:, None]
    # <<< raise NotImplementedError
