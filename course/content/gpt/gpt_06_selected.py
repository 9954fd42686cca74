import torch


def masked_loss(logits, targets, ignore):
    keep = targets.ne(ignore)
    z, y = logits[keep], targets[keep]
    right = z[torch.arange(len(y)), y]
    return (z.logsumexp(-1) - right).mean()
