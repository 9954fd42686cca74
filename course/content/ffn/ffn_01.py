import math

import torch
from torch import Tensor


def gelu(x: Tensor) -> Tensor:
    """
    zh: 精确的 GELU：x·Φ(x) = x/2·(1 + erf(x/√2))，不是 tanh 近似
    en: The exact GELU: x·Φ(x) = x/2·(1 + erf(x/√2)), not the tanh approximation

    x (B, T, F) → (B, T, F)
    """
    # >>>
    return 0.5 * x * (1.0 + torch.erf(x / math.sqrt(2.0)))
    # <<< raise NotImplementedError
