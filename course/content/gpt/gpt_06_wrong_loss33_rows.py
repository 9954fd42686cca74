import torch
import torch.nn.functional as F


def masked_loss(logits, targets, ignore):
    rows = [F.cross_entropy(z, y, ignore_index=ignore) for z, y in zip(logits, targets)]
    return torch.stack(rows).mean()
