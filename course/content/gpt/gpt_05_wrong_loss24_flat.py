import torch.nn.functional as F


def next_token_loss(logits, ids):
    z = logits.reshape(-1, logits.shape[-1])
    y = ids.reshape(-1)
    return F.cross_entropy(z[:-1], y[1:])
