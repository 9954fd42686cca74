import torch


def masked_weights(scores, mask):
    bias = torch.zeros(mask.shape)
    bias[mask == 0] = -torch.inf
    exps = torch.exp(scores + bias)
    return exps / exps.sum(-1, keepdim=True)
