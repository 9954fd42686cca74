import torch.nn.functional as F


def masked_loss(logits, targets, ignore):
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=ignore)
