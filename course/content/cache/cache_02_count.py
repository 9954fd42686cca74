import torch


def new_positions(cache, n_new):
    ones = torch.ones(n_new, dtype=torch.long)
    return ones.cumsum(0) - 1 + (cache["v"].shape[2] if len(cache) else 0)
