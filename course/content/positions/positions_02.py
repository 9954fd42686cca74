import torch
from torch import Tensor


def sinusoidal(length: int, dim: int) -> Tensor:
    """
    zh: 正弦位置：P[t, 2i] = sin(t·ω_i)，P[t, 2i+1] = cos(t·ω_i)，ω_i = 10000^(−2i/D)
    en: Sinusoidal positions: P[t, 2i] = sin(t·ω_i), P[t, 2i+1] = cos(t·ω_i), ω_i = 10000^(−2i/D)

    dim even → (length, dim)
    """
    # >>>
    positions = torch.arange(length, dtype=torch.float64)
    exponents = torch.arange(0, dim, 2, dtype=torch.float64) / dim
    frequencies = 10000.0**-exponents
    angles = torch.outer(positions, frequencies)
    table = torch.zeros(length, dim)
    table[:, 0::2] = torch.sin(angles)
    table[:, 1::2] = torch.cos(angles)
    return table
    # <<< raise NotImplementedError
