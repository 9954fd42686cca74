import torch


def perplexity(losses, counts):
    return torch.exp(torch.tensor(losses).mean()).item()
