import math

import torch
import torch.nn.functional as F


def multi_head_attention(x, w_q, w_k, w_v, w_o, n_heads):
    B, T, C = x.size()
    q, k, v = F.linear(x, torch.cat([w_q, w_k, w_v])).split(C, dim=2)
    q = q.view(B, T, n_heads, C // n_heads).transpose(1, 2).float()
    k = k.view(B, T, n_heads, C // n_heads).transpose(1, 2).float()
    v = v.view(B, T, n_heads, C // n_heads).transpose(1, 2).float()
    att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
    bias = torch.tril(torch.ones(T, T)).view(1, 1, T, T)
    att = att.masked_fill(bias == 0, torch.finfo(att.dtype).min)
    y = F.softmax(att, dim=-1) @ v
    y = y.transpose(1, 2).contiguous().view(B, T, C).to(x.dtype)
    return F.linear(y, w_o)
