import torch
import torch.nn as nn


def next_token_loss(logits, ids):
    shifted = torch.full_like(ids, -100)
    shifted[:, :-1] = ids[:, 1:]
    return nn.CrossEntropyLoss()(logits.transpose(1, 2), shifted)
