import math

import torch
from torch import Tensor


def append(cache: dict[str, Tensor], k: Tensor, v: Tensor) -> dict[str, Tensor]:
    """
    zh: 你在 cache.01 写的那个
    en: The one you wrote in cache.01
    """
    if not cache:
        return {"k": k, "v": v}
    return {name: torch.cat([cache[name], new], dim=2) for name, new in (("k", k), ("v", v))}


def cached_attention(
    q: Tensor, k: Tensor, v: Tensor, cache: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """
    zh: 只来了 T 个新词元，前文的键值在缓存里：接上，再做因果注意力；交回输出与新的缓存
    en: Only T new tokens come in, earlier keys and values are cached: append, attend causally;
    en: return the output and the new cache

    q, k (B, H, T, d), v (B, H, T, e), S cached → output (B, H, T, e), S + T cached
    """
    # >>>
    cache = append(cache, k, v)
    keys, values = cache["k"], cache["v"]
    past = keys.shape[2] - q.shape[2]
    scores = q @ keys.transpose(-2, -1) / math.sqrt(q.shape[-1])
    visible = torch.ones(scores.shape[-2:], dtype=torch.bool).tril(past)
    weights = torch.softmax(scores.masked_fill(~visible, float("-inf")), dim=-1)
    return weights @ values, cache
    # <<< raise NotImplementedError
