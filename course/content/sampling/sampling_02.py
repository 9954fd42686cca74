import torch
from torch import Tensor


def top_k(logits: Tensor, k: int) -> Tensor:
    """
    zh: 每行只留最好的 k 个，其余记作 −∞；k 比词表还大就全留
    en: Each row keeps its k best, the rest become −∞; a k beyond the vocabulary keeps all

    logits (B, V) → (B, V)
    """
    # >>>
    k = min(k, logits.shape[-1])
    border = logits.topk(k, dim=-1).values[:, -1:]
    return logits.masked_fill(logits < border, float("-inf"))
    # <<< raise NotImplementedError
