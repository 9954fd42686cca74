import torch


def top_p(logits, p):
    values, ids = torch.sort(logits)
    total = values.softmax(-1).cumsum(-1)
    remove = total <= 1 - p
    remove[..., -1] = False
    return logits.masked_fill(remove.gather(1, ids.argsort(1)), -torch.inf)
