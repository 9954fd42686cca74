import math

import torch


def sinusoidal(length, dim):
    w = torch.exp(torch.arange(0, dim, 2).float() * (-math.log(10000.0) / dim))
    a = torch.arange(length).unsqueeze(1) * w
    return torch.stack((a.sin(), a.cos()), dim=-1).flatten(1)
