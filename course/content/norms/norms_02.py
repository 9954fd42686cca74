import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """
    zh: 均方根归一化：只除以大小，不减均值；y = γ·x / √(mean(x²) + ε)
    en: RMS norm: divide by the size only, no mean is subtracted; y = γ·x / √(mean(x²) + ε)

    x (B, T, D), weight = γ (D,) → (B, T, D)
    """
    # >>>
    mean_square = (x * x).mean(dim=-1, keepdim=True)
    return weight * (x / torch.sqrt(mean_square + eps))
    # <<< raise NotImplementedError
