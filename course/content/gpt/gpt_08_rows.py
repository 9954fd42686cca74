import torch
import torch.nn.functional as F


def language_model_loss(model, tokens):
    x = tokens[:, :-1]
    y = tokens[:, 1:]
    losses = [F.cross_entropy(z, t) for z, t in zip(model(x), y)]
    return torch.stack(losses).mean()
