import torch


def perplexity(losses, counts):
    losses, counts = torch.tensor(losses), torch.tensor(counts)
    return torch.exp((losses * counts).sum() / counts.sum())
