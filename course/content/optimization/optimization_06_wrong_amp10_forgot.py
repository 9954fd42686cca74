import torch


def scaled_update(parameters, gradients, scale, max_norm, lr):
    norm = torch.cat([g.flatten() for g in gradients]).norm()
    if not torch.isfinite(norm):
        return parameters, True
    if norm > max_norm:
        gradients = [g * (max_norm / norm) for g in gradients]
    return [p - lr * g for p, g in zip(parameters, gradients)], False
