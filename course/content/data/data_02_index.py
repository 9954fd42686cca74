import torch


def batch(tokens, starts, block_size):
    places = starts[:, None] + torch.arange(block_size + 1)
    rows = tokens[places]
    return rows[:, :-1], rows[:, 1:]
