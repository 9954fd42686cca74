import torch
import torch.nn.functional as F


def multi_head_attention(x, w_q, w_k, w_v, w_o, n_heads):
    B, T, C = x.size()
    q = F.linear(x, w_q).view(B, T, n_heads, C // n_heads).transpose(1, 2)
    k = F.linear(x, w_k).view(B, T, n_heads, C // n_heads).transpose(1, 2)
    v = F.linear(x, w_v).view(B, T, n_heads, C // n_heads).transpose(1, 2)
    att = (q @ k.mT) * (1.0 / C**0.5)
    att = att.masked_fill(torch.tril(torch.ones(T, T)) == 0, float("-inf"))
    y = F.softmax(att, dim=-1) @ v
    return F.linear(y.transpose(1, 2).contiguous().view(B, T, C), w_o)
