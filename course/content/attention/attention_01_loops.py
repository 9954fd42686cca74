import torch


def attention_scores(q, k):
    out = torch.zeros(q.shape[0], q.shape[1], k.shape[1])
    for b in range(q.shape[0]):
        for i in range(q.shape[1]):
            for j in range(k.shape[1]):
                out[b, i, j] = (q[b, i] * k[b, j]).sum() / q.shape[2] ** 0.5
    return out
