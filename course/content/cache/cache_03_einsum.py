import torch


def cached_attention(q, k, v, cache):
    keys = torch.cat([cache["k"], k], -2) if cache else k
    values = torch.cat([cache["v"], v], -2) if cache else v
    t, s, d = q.shape[2], keys.shape[2], q.shape[3]
    scores = torch.einsum("bhtd,bhsd->bhts", q, keys) / d**0.5
    rows = torch.arange(s - t, s).unsqueeze(1)
    e = scores.exp() * (torch.arange(s) <= rows)
    return torch.einsum("bhts,bhse->bhte", e / e.sum(-1, keepdim=True), values), dict(
        k=keys, v=values
    )
