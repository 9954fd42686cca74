import torch.nn.functional as F


def swiglu(x, w1, w3, w2):
    return F.linear(F.linear(x, w1) * F.silu(F.linear(x, w3)), w2)
