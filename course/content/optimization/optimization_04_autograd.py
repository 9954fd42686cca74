import torch


def accumulate(model_loss, micro_batches, parameters):
    pieces = [model_loss(b) for b in micro_batches]
    mean = sum(s for s, _ in pieces) / sum(n for _, n in pieces)
    return mean, torch.autograd.grad(mean, parameters)
