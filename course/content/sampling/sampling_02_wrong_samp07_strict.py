import torch


def top_k(logits, k):
    border, _ = torch.kthvalue(logits, max(logits.shape[1] - k + 1, 1), dim=-1, keepdim=True)
    return torch.where(logits > border, logits, -torch.inf)
