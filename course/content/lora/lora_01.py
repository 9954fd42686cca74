import torch
from torch import Tensor


def lora_forward(x: Tensor, w: Tensor, a: Tensor, b: Tensor, alpha: float, r: int) -> Tensor:
    """
    zh: 冻结的大矩阵照旧，旁边加一条细路：y = xWᵀ + (α/r)·xAB
    en: The frozen matrix as ever, and a narrow path beside it: y = xWᵀ + (α/r)·xAB

    x (B, T, d_in), w (d_out, d_in), a (d_in, r), b (r, d_out) → (B, T, d_out)
    """
    # >>>
    scale = alpha / r
    return x @ w.T + scale * (x @ a @ b)
    # <<< raise NotImplementedError
