import torch


def absmax_int8(w):
    top = torch.maximum(w.amax(1), -w.amin(1)).clamp(min=1e-9)
    q = torch.einsum("nk,n->nk", w, 127 / top).round_().char()
    return q, top / 127


def dequantize(q, scale):
    return torch.diag(scale) @ q.to(scale.dtype)
