import torch


def repeat_kv(x, n_repeats):
    heads = []
    for g in range(x.shape[1]):
        for _ in range(n_repeats):
            heads.append(x[:, g])
    return torch.stack(heads, dim=1)
