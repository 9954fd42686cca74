import torch


def next_probabilities(logits, seen, penalty, temperature, p):
    mask = torch.zeros(len(logits), dtype=torch.bool)
    mask[seen] = True
    z = torch.where(mask, torch.minimum(logits / penalty, logits * penalty), logits) / temperature
    probs = z.softmax(0)
    keep = torch.stack([probs[probs > x].sum() < p for x in probs])
    kept = probs * keep
    return kept / kept.sum()
