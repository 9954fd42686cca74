import torch


def clip_gradients(gradients, max_norm):
    total = torch.cat([g.flatten() for g in gradients]).norm()
    out = []
    for g in gradients:
        n = g.norm()
        out.append(g * (max_norm / n) if n > max_norm else g)
    return out, total
