import torch
from torch import Tensor


def padded_weights(scores: Tensor, real: Tensor) -> Tensor:
    """
    zh: 左边补齐的一批：键既要在查询之前（含自己），又要是真的词元；谁也看不见的行全是 0，不是 NaN
    en: A left-padded batch: a key must not be later than its query, and be real; a row that sees
    en: nothing is all 0, not NaN

    scores (B, T, T), real (B, T) bool → weights (B, T, T)
    """
    # >>>
    length = scores.shape[-1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    visible = causal & real[:, None, :]
    weights = torch.softmax(scores.masked_fill(~visible, float("-inf")), dim=-1)
    nobody = ~visible.any(dim=-1, keepdim=True)
    return weights.masked_fill(nobody, 0.0)
    # <<< raise NotImplementedError
