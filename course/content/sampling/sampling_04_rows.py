import torch


def min_p(logits, p):
    kept = []
    for row in logits.tolist():
        e = [2.718281828459045**z for z in row]
        kept.append([z if x >= p * max(e) else -1e10 for z, x in zip(row, e)])
    return torch.tensor(kept)
