import torch


def padded_weights(scores, real):
    t = scores.shape[1]
    keep = (torch.arange(t)[:, None] >= torch.arange(t)[None, :])[None] * real.unsqueeze(1)
    e = torch.exp(scores - scores.amax(-1, keepdim=True)) * keep
    total = e.sum(-1, keepdim=True)
    return torch.where(total > 0, e / total.clamp(min=1e-300), 0.0)
