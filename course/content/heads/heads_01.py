import torch
from torch import Tensor


def split_heads(x: Tensor, n_heads: int) -> Tensor:
    """
    zh: 拆头：头 h 是每个词元最后一维的第 h 段，每段宽 d = D / H
    en: Split into heads: head h is the h-th segment of every token's vector, d = D / H wide

    x (B, T, D) → (B, H, T, d)
    """
    # >>>
    batch, length, width = x.shape
    pieces = x.reshape(batch, length, n_heads, width // n_heads)
    return pieces.transpose(1, 2)
    # <<< raise NotImplementedError
