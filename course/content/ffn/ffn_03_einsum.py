import torch


def swiglu(x, w_gate, w_up, w_down):
    g = torch.einsum("btd,fd->btf", x, w_gate)
    swish = g / (1 + torch.exp(-g))
    return torch.einsum("btf,btf,df->btd", swish, torch.einsum("btd,fd->btf", x, w_up), w_down)
