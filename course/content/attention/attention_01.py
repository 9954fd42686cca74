import math

import torch
from torch import Tensor


def attention_scores(q: Tensor, k: Tensor) -> Tensor:
    """
    zh: 每个查询与每个键有多相配：S = QKᵀ / √d
    en: How well each query matches each key: S = QKᵀ / √d

    q (B, T, d), k (B, S, d) → (B, T, S)
    """
    # >>>
    width = q.shape[-1]
    return q @ k.transpose(-2, -1) / math.sqrt(width)
    # <<< raise NotImplementedError
