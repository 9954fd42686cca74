import torch
from torch import Tensor


def append(cache: dict[str, Tensor], k: Tensor, v: Tensor) -> dict[str, Tensor]:
    """
    zh: 把新词元的键、值接在已缓存的后面，交回装着全部键值的缓存；空缓存是 {}
    en: Put the new tokens' keys and values behind the cached ones and return a cache that holds
    en: all; {} is an empty cache

    cache["k"] (B, H, S, d), cache["v"] (B, H, S, e), k (B, H, T, d), v (B, H, T, e) → S + T tokens
    """
    # >>>
    if not cache:
        return {"k": k, "v": v}
    keys = torch.cat([cache["k"], k], dim=2)
    values = torch.cat([cache["v"], v], dim=2)
    return {"k": keys, "v": values}
    # <<< raise NotImplementedError
