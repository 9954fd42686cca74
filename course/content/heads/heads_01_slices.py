import torch


def split_heads(x, n_heads):
    d = x.shape[2] // n_heads
    return torch.stack([x[:, :, h * d : (h + 1) * d] for h in range(n_heads)], dim=1)
