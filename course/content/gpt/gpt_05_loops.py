import torch


def next_token_loss(logits, ids):
    total, n = 0.0, 0
    for b in range(ids.shape[0]):
        for t in range(ids.shape[1] - 1):
            z = logits[b, t]
            total = total + torch.logsumexp(z, 0) - z[ids[b, t + 1]]
            n += 1
    return total / n
