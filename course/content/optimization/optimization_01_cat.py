import torch


def clip_gradients(gradients, max_norm):
    long = torch.cat([g.flatten() for g in gradients])
    length = long.norm().item()
    scale = min(1.0, max_norm / (length + 1e-6))
    return [scale * g for g in gradients], length
