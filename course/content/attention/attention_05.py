import torch
from torch import Tensor


def masked_weights(scores: Tensor, mask: Tensor) -> Tensor:
    """
    zh: 只在看得见的键之间分配权重；看不见的恰好是 0，每一行的和仍是 1
    en: Share the weight among visible keys only; hidden ones get exactly 0, rows still sum to 1

    scores (B, T, S), mask (T, S) bool, True = visible → (B, T, S)
    """
    # >>>
    hidden = scores.masked_fill(~mask, float("-inf"))
    return torch.softmax(hidden, dim=-1)
    # <<< raise NotImplementedError
