import torch
from torch import Tensor


def min_p(logits: Tensor, p: float) -> Tensor:
    """
    zh: 每行只留概率不低于「最好的那个的 p 倍」的，其余记作 −∞
    en: Each row keeps what is at least p times as likely as its best; the rest become −∞

    logits (B, V), 0 ≤ p ≤ 1 → (B, V)
    """
    # >>>
    chances = torch.softmax(logits, dim=-1)
    border = p * chances.max(dim=-1, keepdim=True).values
    return logits.masked_fill(chances < border, float("-inf"))
    # <<< raise NotImplementedError
