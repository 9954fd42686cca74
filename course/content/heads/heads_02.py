import torch
from torch import Tensor


def merge_heads(x: Tensor) -> Tensor:
    """
    zh: 合头：每个词元把自己在各个头里的 d 个数首尾相接；拆头的逆
    en: Merge heads: every token puts its d numbers of each head end to end; undoes the splitting

    x (B, H, T, d) → (B, T, H·d)
    """
    # >>>
    batch, n_heads, length, width = x.shape
    by_token = x.transpose(1, 2)
    return by_token.reshape(batch, length, n_heads * width)
    # <<< raise NotImplementedError
