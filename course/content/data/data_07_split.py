import torch


def epoch(tokens, starts, order, batch_size, block_size):
    found = []
    for some in order.split(batch_size):
        rows = torch.stack([tokens[s : s + block_size + 1] for s in starts[some].tolist()])
        found.append((rows[:, :-1], rows[:, 1:]))
    return found
