import math

import torch
from torch import Tensor


def grouped_query_attention(
    x: Tensor, w_q: Tensor, w_k: Tensor, w_v: Tensor, w_o: Tensor, n_heads: int, n_kv_heads: int
) -> Tensor:
    """
    zh: 分组查询注意力：第 h 个查询头用第 ⌊h·G/H⌋ 个键值头。这份代码有一处错，找出来改好
    en: Grouped-query attention: query head h uses key-value head ⌊h·G/H⌋. One fault is in here

    x (B, T, D); w_q, w_o (D, D); w_k, w_v (G·d, D) → (B, T, D)
    """
    batch, length, width = x.shape
    head_width = width // n_heads
    repeats = n_heads // n_kv_heads
    q = (x @ w_q.T).view(batch, length, n_heads, head_width).transpose(1, 2)
    k = (x @ w_k.T).view(batch, length, n_kv_heads, head_width).transpose(1, 2)
    v = (x @ w_v.T).view(batch, length, n_kv_heads, head_width).transpose(1, 2)
    # >>>
    k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
    # <<<
    scores = q @ k.transpose(-2, -1) / math.sqrt(head_width)
    visible = torch.ones(length, length, dtype=torch.bool).tril()
    scores = scores.masked_fill(~visible, float("-inf"))
    weights = torch.softmax(scores, dim=-1)
    mixed = weights @ v
    return mixed.transpose(1, 2).reshape(batch, length, width) @ w_o.T
