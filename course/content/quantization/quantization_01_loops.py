import torch


def absmax_int8(w):
    q = torch.zeros(w.shape, dtype=torch.int8)
    scales = []
    for i, row in enumerate(w.tolist()):
        s = max(abs(v) for v in row) / 127
        scales.append(s)
        for j, v in enumerate(row):
            q[i, j] = round(v / s) if s else 0
    return q, torch.tensor(scales)


def dequantize(q, scale):
    return torch.stack([s * row for s, row in zip(scale, q.double())])
