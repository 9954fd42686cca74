import math

import torch
from torch import Tensor


def lora_init(d_in: int, d_out: int, r: int) -> tuple[Tensor, Tensor]:
    """
    zh: 一开始模型一个数都不变，又学得动：A 随机（在 ±1/√d_in 之间均匀，与 nn.Linear 相同），B 全零
    en: At first nothing changes, and yet it can learn: A random (uniform in ±1/√d_in, as nn.Linear
    en: does), B all zeros

    → a (d_in, r), b (r, d_out)
    """
    # >>>
    bound = 1 / math.sqrt(d_in)
    a = torch.empty(d_in, r).uniform_(-bound, bound)
    b = torch.zeros(r, d_out)
    return a, b
    # <<< raise NotImplementedError
