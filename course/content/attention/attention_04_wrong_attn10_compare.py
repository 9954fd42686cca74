import torch


def causal_mask(n_queries, n_keys):
    rows = torch.arange(n_keys - n_queries, n_keys)
    return torch.arange(n_keys)[None, :] < rows[:, None]
