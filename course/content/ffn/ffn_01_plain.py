import math

import torch


def gelu(x):
    flat = [v * (1 + math.erf(v / 2**0.5)) / 2 for v in x.reshape(-1).tolist()]
    return torch.tensor(flat).reshape(x.shape)
