import math

import torch


def rope_angles(length, head_dim, base):
    half = head_dim // 2
    inv_freq = torch.exp(torch.arange(half) * (-math.log(base) / half))
    return torch.arange(length)[:, None] * inv_freq[None, :]
