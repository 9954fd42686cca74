import torch


def language_model_loss(model, tokens):
    log_p = model(tokens[:, :-1]).log_softmax(-1)
    return -torch.take_along_dim(log_p, tokens[:, 1:].unsqueeze(-1), dim=-1).mean()
