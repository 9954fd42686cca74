import torch


def attention_scores(q, k):
    d = q.size(2)
    return torch.einsum("btd,bsd->bts", q * d**-0.25, k * d**-0.25)
