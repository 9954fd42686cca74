import torch


def attention_scores(q, k):
    return torch.stack([a @ b.T for a, b in zip(q, k)])
