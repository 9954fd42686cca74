import torch


def layer_norm(x, weight, bias, eps):
    out = torch.zeros(x.shape)
    for b in range(x.shape[0]):
        for t in range(x.shape[1]):
            row = x[b, t]
            m = sum(row.tolist()) / len(row)
            v = sum((a - m) ** 2 for a in row.tolist()) / len(row)
            out[b, t] = (row - m) / (v + eps) ** 0.5
    out *= weight
    out += bias
    return out
