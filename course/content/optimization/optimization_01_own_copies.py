import math


def clip_gradients(gradients, max_norm):
    total = 0.0
    for g in gradients:
        for x in g.reshape(-1).tolist():
            total += x * x
    norm = math.sqrt(total)
    copies = [g.clone() for g in gradients]
    if norm > max_norm:
        for c in copies:
            c.mul_(max_norm).div_(norm)
    return copies, norm
