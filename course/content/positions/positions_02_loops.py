import math

import torch


def sinusoidal(length, dim):
    table = torch.empty(length, dim)
    for t in range(length):
        for j in range(dim):
            angle = t / 10000 ** ((j // 2) * 2 / dim)
            table[t, j] = math.cos(angle) if j % 2 else math.sin(angle)
    return table
