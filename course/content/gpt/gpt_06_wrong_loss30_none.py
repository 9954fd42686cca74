import torch.nn.functional as F


def masked_loss(logits, targets, ignore):
    each = F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=ignore, reduction="none")
    return each.mean()
