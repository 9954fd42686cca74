import torch


def repeat_kv(x, n_repeats):
    owner = torch.arange(x.shape[1] * n_repeats) // n_repeats
    return x[:, owner]
