import math

import torch


def scaled_update(parameters, gradients, scale, max_norm, lr):
    length = torch.cat([g.flatten() for g in gradients]).norm().item() / scale
    if not math.isfinite(length):
        return [p.clone() for p in parameters], True
    step = lr / scale
    if length > max_norm:
        step *= max_norm / length
    return [torch.add(p, g, alpha=-step) for p, g in zip(parameters, gradients)], False
