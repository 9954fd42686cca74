import torch


def repetition_penalty(logits, seen_ids, penalty):
    seen = torch.zeros(logits.shape, dtype=torch.bool)
    for row, ids in enumerate(seen_ids):
        seen[row, ids] = True
    lower = torch.where(logits < 0, logits * penalty, logits / penalty)
    return torch.where(seen, lower, logits)
