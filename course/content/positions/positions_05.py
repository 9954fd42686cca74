import math

import torch
from torch import Tensor


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """
    zh: 上一题的转动，这里没有错
    en: The turning of the exercise before; no fault here
    """
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def rotary_scores(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """
    zh: 带旋转位置的打分；S 个键是第 0 … S − 1 个词元，T 个查询是最后 T 个。这里有一处错
    en: Scores with rotary positions; the S keys are tokens 0 … S − 1, the T queries the last T.
    en: One fault is in here

    q (B, H, T, d), k (B, H, S, d), cos, sin (S, d/2) → (B, H, T, S)
    """
    past = k.shape[-2] - q.shape[-2]
    # >>>
    q = rotate(q, cos[past:], sin[past:])
    k = rotate(k, cos, sin)
    # <<<
    return q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
