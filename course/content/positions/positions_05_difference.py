import torch


def rotary_scores(q, k, cos, sin):
    # score of (t, s) = Σ over pairs: cos(θt − θs)·(a·a' + b·b') + sin(θt − θs)·(a·b' − b·a')
    n = q.shape[-1] // 2
    past = len(cos) - q.shape[2]
    ct, st = cos[past:, None], sin[past:, None]
    c = ct * cos + st * sin
    s = st * cos - ct * sin
    a, b = q[..., None, :n], q[..., None, n:]
    a2, b2 = k[..., None, :, :n], k[..., None, :, n:]
    return (c * (a * a2 + b * b2) + s * (a * b2 - b * a2)).sum(-1) / q.shape[-1] ** 0.5
