import torch


def rms_norm(x, weight, eps):
    rms = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
    return x / rms * weight
