import torch


def rotate(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    turned = torch.complex(a, b) * torch.complex(cos, sin)
    return torch.cat([turned.real, turned.imag], dim=-1)
