import torch
from torch import Tensor


def causal_mask(n_queries: int, n_keys: int) -> Tensor:
    """
    zh: 谁看得见谁：查询 i 是第 i + (n_keys − n_queries) 个词元，看得见自己与之前的键
    en: Who sees whom: query i is token i + (n_keys − n_queries); it sees itself and the past

    → (n_queries, n_keys) bool; True = visible
    """
    # >>>
    past = n_keys - n_queries
    return torch.ones(n_queries, n_keys, dtype=torch.bool).tril(past)
    # <<< raise NotImplementedError
