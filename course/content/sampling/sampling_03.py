import torch
from torch import Tensor


def top_p(logits: Tensor, p: float) -> Tensor:
    """
    zh: 每行从最可能的数起，概率之和刚到 p 就停：跨线的那个也留，其余记作 −∞
    en: Each row keeps its likeliest until their sum reaches p, the one that crosses included;
    en: the rest become −∞

    logits (B, V), 0 < p < 1 → (B, V)
    """
    # >>>
    ordered, order = logits.sort(dim=-1, descending=True)
    chances = torch.softmax(ordered, dim=-1)
    before = chances.cumsum(dim=-1) - chances
    dropped = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before >= p)
    return logits.masked_fill(dropped, float("-inf"))
    # <<< raise NotImplementedError
