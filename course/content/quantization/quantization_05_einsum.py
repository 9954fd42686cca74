import torch


def quantized_linear(x, q, scale, bias=None):
    y = torch.einsum("bk,nk,n->bn", x, q.double(), scale)
    if bias is not None:
        y += bias
    return y
