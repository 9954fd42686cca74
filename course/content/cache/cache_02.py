import torch
from torch import Tensor


def new_positions(cache: dict[str, Tensor], n_new: int) -> Tensor:
    """
    zh: 缓存之后新喂进来的 n_new 个词元，各是全文的第几个（从 0 数起）；空缓存是 {}
    en: The positions, counted from 0 in the whole text, of the n_new tokens that follow the cache;
    en: {} is an empty cache

    cache["k"] (B, H, S, d) → (n_new,)
    """
    # >>>
    past = cache["k"].shape[2] if cache else 0
    return torch.arange(past, past + n_new)
    # <<< raise NotImplementedError
