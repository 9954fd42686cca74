import torch
from torch import nn


def lora_init(d_in, d_out, r):
    a = nn.Parameter(torch.randn(d_in, r) * d_in**-0.5)
    return a, nn.Parameter(a.new_zeros(r, d_out))
