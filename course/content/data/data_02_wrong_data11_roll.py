import torch


def batch(tokens, starts, block_size):
    x = tokens[starts.unsqueeze(1) + torch.arange(block_size)]
    return x, torch.cat([x[:, 1:], x[:, :1]], dim=1)
