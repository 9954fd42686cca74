import torch
from torch import Tensor


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """
    zh: 层归一化：每个词元各自减去均值、除以标准差，再乘 γ 加 β；y = γ·(x − μ) / √(σ² + ε) + β
    en: Layer norm: every token on its own; y = γ·(x − μ) / √(σ² + ε) + β

    zh: μ、σ² 沿最后一维，σ² 除以 D；x (B, T, D)，weight = γ、bias = β (D,) → (B, T, D)
    en: μ and σ² along the last axis, σ² divides by D; x (B, T, D), weight = γ, bias = β (D,)
    """
    # >>>
    mean = x.mean(dim=-1, keepdim=True)
    centred = x - mean
    variance = (centred * centred).mean(dim=-1, keepdim=True)
    normed = centred / torch.sqrt(variance + eps)
    return weight * normed + bias
    # <<< raise NotImplementedError
