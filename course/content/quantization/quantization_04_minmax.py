import torch


def group_quantize(w, group):
    g = w.unflatten(1, (-1, group))
    low, high = g.amin(-1), g.amax(-1)
    m = torch.where(high > -low, high, low)
    s = -m / 8
    q = g / torch.where(s == 0, torch.ones_like(s), s).unsqueeze(-1)
    return q.round().clip(-8, 7).flatten(1).char(), s
