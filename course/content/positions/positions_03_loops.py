import torch


def rope_angles(length, head_dim, base):
    rows = []
    for t in range(length):
        rows.append([t / base ** (2 * i / head_dim) for i in range(head_dim // 2)])
    return torch.tensor(rows)
