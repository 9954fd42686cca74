import torch


def repeat_kv(x, n_repeats):
    return torch.cat([x] * n_repeats, dim=1)
