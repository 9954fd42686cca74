import torch


def masked_weights(scores, mask):
    p = torch.exp(scores)
    p = p / p.sum(-1).unsqueeze(-1)
    return torch.where(mask, p, torch.zeros(()))
