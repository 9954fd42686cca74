import torch


def rotary_scores(q, k, cos, sin):
    T, S = q.shape[2], k.shape[2]
    cos = torch.cat([cos, cos], -1)
    sin = torch.cat([sin, sin], -1)

    def half(x):
        a, b = x.chunk(2, -1)
        return torch.cat([-b, a], -1)

    q2 = q * cos[S - T :] + half(q) * sin[S - T :]
    k2 = k * cos + half(k) * sin
    return torch.einsum("bhtd,bhsd->bhts", q2, k2) * q.shape[-1] ** -0.5
