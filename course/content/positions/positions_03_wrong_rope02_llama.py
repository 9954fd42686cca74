import torch


def rope_angles(length, head_dim, base):
    inv_freq = 1.0 / (base ** (torch.arange(0, head_dim, 2).double() / head_dim))
    freqs = torch.einsum("i,j->ij", torch.arange(length).double(), inv_freq)
    return torch.cat((freqs, freqs), dim=-1)
