import torch


def draw(probabilities, u):
    total = torch.cumsum(probabilities, 1)
    found = torch.searchsorted(total, u.unsqueeze(1)).squeeze(1)
    return found.clamp(max=probabilities.shape[1] - 1)
