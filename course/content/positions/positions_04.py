import torch
from torch import Tensor


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """
    zh: 转动：x = [a | b] 对半拆，第 i 对是 (a_i, b_i)；a' = a·cos − b·sin，b' = b·cos + a·sin
    en: Turn: x = [a | b] in halves, pair i is (a_i, b_i); a' = a·cos − b·sin, b' = b·cos + a·sin

    x (B, H, T, d), cos, sin (T, d/2) → (B, H, T, d)
    """
    # >>>
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    first = a * cos - b * sin
    second = b * cos + a * sin
    return torch.cat((first, second), dim=-1)
    # <<< raise NotImplementedError
