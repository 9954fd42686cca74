import torch
from torch import Tensor


def softmax(scores: Tensor) -> Tensor:
    """
    zh: 分数变成权重：wᵢ = exp(sᵢ) / Σⱼ exp(sⱼ)，沿最后一维；分数再大也不溢出
    en: Scores to weights: wᵢ = exp(sᵢ) / Σⱼ exp(sⱼ) along the last axis; never overflows

    scores (B, T, S) → (B, T, S)
    """
    # >>>
    largest = scores.max(dim=-1, keepdim=True).values
    raised = torch.exp(scores - largest)
    return raised / raised.sum(dim=-1, keepdim=True)
    # <<< raise NotImplementedError
