import torch


def merge(w, a, b, alpha, r):
    columns = []
    for x in torch.eye(w.shape[1]):
        columns.append(w @ x + (x @ a) @ b * (alpha / r))
    return torch.stack(columns, dim=1)
