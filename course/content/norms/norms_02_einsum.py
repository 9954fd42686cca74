import torch


def rms_norm(x, weight, eps):
    power = torch.einsum("btd,btd->bt", x, x)[..., None] / len(weight)
    return x.mul(torch.rsqrt(power + eps)).mul(weight)
