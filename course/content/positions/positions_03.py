import torch
from torch import Tensor


def rope_angles(length: int, head_dim: int, base: float) -> Tensor:
    """
    zh: 旋转位置的角度：第 t 个位置、第 i 对分量转 t·ω_i，ω_i = base^(−2i/d)，i = 0 … d/2 − 1
    en: Angles of rotary positions: position t turns pair i by t·ω_i, ω_i = base^(−2i/d)

    head_dim = d even → (length, d/2)
    """
    # >>>
    pairs = torch.arange(0, head_dim, 2, dtype=torch.float64)
    frequencies = base ** (-pairs / head_dim)
    positions = torch.arange(length, dtype=torch.float64)
    return torch.outer(positions, frequencies)
    # <<< raise NotImplementedError
