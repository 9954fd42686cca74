import torch


def top_p(logits, p):
    out = torch.full_like(logits, float("-inf"))
    for b, row in enumerate(logits):
        probs = row.softmax(0)
        mass = 0.0
        for v in probs.argsort(descending=True).tolist():
            out[b, v] = row[v]
            mass += float(probs[v])
            if mass >= p:
                break
    return out
