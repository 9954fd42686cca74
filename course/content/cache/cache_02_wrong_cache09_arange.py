import torch


def new_positions(cache, n_new):
    return torch.arange(n_new)
