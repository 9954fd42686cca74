import torch


def draw(probabilities, u):
    total = torch.cumsum(probabilities, 1)
    total = total / total[:, -1:]
    return torch.searchsorted(total, u.unsqueeze(1), right=True).squeeze(1)
