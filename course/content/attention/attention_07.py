import math

import torch
from torch import Tensor


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """
    zh: 因果自注意力：每个词元只汇总自己与之前的。这份代码有一处错，找出来改好
    en: Causal self-attention: each token collects itself and what came before. One fault is in here

    q, k (B, T, d), v (B, T, e) → weights (B, T, T), output (B, T, e)
    """
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    visible = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    scores = scores.masked_fill(~visible, float("-inf"))
    # >>>
    weights = torch.softmax(scores, dim=-1)
    # <<<
    return weights, weights @ v
