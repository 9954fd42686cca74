import math

import torch


def min_p(logits, p):
    if p == 0:
        return logits
    return torch.where(logits >= logits.amax(1, keepdim=True) + math.log(p), logits, -torch.inf)
