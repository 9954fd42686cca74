import math

import torch
from torch import Tensor


def multi_head_attention(
    x: Tensor, w_q: Tensor, w_k: Tensor, w_v: Tensor, w_o: Tensor, n_heads: int
) -> Tensor:
    """
    zh: 因果的多头自注意力：投影、拆头、各头各算注意力（除以 √d）、合头、再乘 W_O
    en: Causal multi-head self-attention: project, split, attend in every head (÷ √d), merge, W_O

    zh: x (B, T, D)，四个权重都是 (D, D)，先输出后输入，与 nn.Linear 一样：y = x Wᵀ → (B, T, D)
    en: x (B, T, D), four weights (D, D) as (out, in), like nn.Linear: y = x Wᵀ → (B, T, D)
    """
    # >>>
    batch, length, width = x.shape

    def heads(w: Tensor) -> Tensor:
        return (x @ w.T).view(batch, length, n_heads, -1).transpose(1, 2)

    q, k, v = heads(w_q), heads(w_k), heads(w_v)
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    visible = torch.ones(length, length, dtype=torch.bool).tril()
    scores = scores.masked_fill(~visible, float("-inf"))
    weights = torch.softmax(scores, dim=-1)
    mixed = weights @ v
    merged = mixed.transpose(1, 2).reshape(batch, length, width)
    return merged @ w_o.T
    # <<< raise NotImplementedError
