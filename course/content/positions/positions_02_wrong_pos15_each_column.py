import torch


def sinusoidal(length, dim):
    angle = torch.tensor([[t / 10000 ** (j / dim) for j in range(dim)] for t in range(length)])
    angle[:, 0::2] = torch.sin(angle[:, 0::2])
    angle[:, 1::2] = torch.cos(angle[:, 1::2])
    return angle
