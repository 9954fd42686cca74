import math

import torch
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """
    zh: 按相配的程度汇总各个值：O = softmax(QKᵀ / √d)·V；打分、权重、输出一起交回
    en: Collect the values by how well they match: O = softmax(QKᵀ / √d)·V; return all three

    q (B, T, d), k (B, S, d), v (B, S, e) → scores (B, T, S), weights (B, T, S), output (B, T, e)
    """
    # >>>
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    weights = torch.softmax(scores, dim=-1)
    output = weights @ v
    return scores, weights, output
    # <<< raise NotImplementedError
