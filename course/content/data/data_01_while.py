import torch


def windows(tokens, block_size):
    starts, at = [], 0
    while at + block_size + 1 <= len(tokens):
        starts.append(at)
        at += block_size
    if at + 1 < len(tokens):
        starts.append(len(tokens) - block_size - 1)
    return torch.tensor(starts)
