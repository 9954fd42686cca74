import torch


def top_k(logits, k):
    order = logits.argsort(dim=-1, descending=True)
    keep = torch.zeros_like(logits, dtype=torch.bool)
    for row in range(len(logits)):
        keep[row, order[row, :k]] = True
    return torch.where(keep, logits, torch.tensor(float("-inf")))
