import torch
from torch import Tensor


def merge(w: Tensor, a: Tensor, b: Tensor, alpha: float, r: int) -> Tensor:
    """
    zh: 把细路并进大矩阵：xW′ᵀ 与 lora_forward 处处相等。交回新的矩阵，原来的 w 不要动
    en: Merge the narrow path into the matrix: xW′ᵀ equals lora_forward everywhere. Return a new
    en: matrix, leave w as it is

    w (d_out, d_in), a (d_in, r), b (r, d_out) → (d_out, d_in)
    """
    # >>>
    change = a @ b
    return w + alpha / r * change.T
    # <<< raise NotImplementedError
