import torch


def scaled_update(parameters, gradients, scale, max_norm, lr):
    small, squares, bad = [], 0.0, False
    for g in gradients:
        g = g.clone()
        g /= scale
        bad = bad or bool(torch.isnan(g).any()) or bool(torch.isinf(g).any())
        squares += float((g * g).sum())
        small.append(g)
    if bad:
        return parameters, True
    norm = squares**0.5
    if norm > max_norm:
        small = [g * max_norm / norm for g in small]
    return [p - lr * g for p, g in zip(parameters, small)], False
