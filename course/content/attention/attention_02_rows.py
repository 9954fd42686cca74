import math

import torch


def softmax(scores):
    rows = []
    for row in scores.reshape(-1, scores.shape[-1]).tolist():
        top = max(row)
        parts = [math.exp(value - top) for value in row]
        rows.append([part / sum(parts) for part in parts])
    return torch.tensor(rows).reshape(scores.shape)
