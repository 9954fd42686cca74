import torch


def group_quantize(w, group):
    n, k = w.shape
    g = w.view(n, -1, group)
    s = g.abs().amax(-1, keepdim=True) / 8
    q = torch.clamp(torch.round(g / s.clamp(min=1e-9)), -8, 7)
    return q.view(n, k).to(torch.int8), s[..., 0]
