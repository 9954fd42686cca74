import torch


def split_heads(x, n_heads):
    out = torch.empty(len(x), n_heads, x.size(1), x.size(-1) // n_heads)
    for h, part in enumerate(x.chunk(n_heads, -1)):
        out[:, h] = part
    return out
