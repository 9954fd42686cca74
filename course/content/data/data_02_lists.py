import torch


def batch(tokens, starts, block_size):
    x = torch.zeros(len(starts), block_size, dtype=torch.long)
    y = x.clone()
    for b, s in enumerate(starts):
        for t in range(block_size):
            x[b, t] = tokens[s + t]
            y[b, t] = tokens[s + t + 1]
    return x, y
