import torch
from torch import Tensor


def embed(ids: Tensor, token_table: Tensor, position_table: Tensor) -> Tensor:
    """
    zh: 编号变成向量：x_t = E[id_t] + P[t]，t 从 0 数起
    en: Ids become vectors: x_t = E[id_t] + P[t], t counts from 0

    ids (B, T) int, token_table (V, D), position_table (L, D), T ≤ L → (B, T, D)
    """
    # >>>
    length = ids.shape[1]
    tokens = token_table[ids]
    return tokens + position_table[:length]
    # <<< raise NotImplementedError
