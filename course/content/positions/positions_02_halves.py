import math

import torch


def sinusoidal(length, dim):
    half = dim // 2
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(half) / half)
    angles = torch.arange(length)[:, None] * frequencies[None]
    return torch.cat([angles.sin(), angles.cos()], dim=1)
