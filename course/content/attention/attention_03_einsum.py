import torch
import torch.nn.functional as F


def attention(q, k, v):
    d = k.shape[-1]
    s = torch.einsum("bid,bjd->bij", q, k) / d**0.5
    p = F.softmax(s, -1)
    return s, p, torch.einsum("bij,bje->bie", p, v)
