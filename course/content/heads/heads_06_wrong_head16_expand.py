import torch


def grouped_query_attention(x, w_q, w_k, w_v, w_o, n_heads, n_kv_heads):
    b, t, c = x.shape
    d, n = c // n_heads, n_heads // n_kv_heads
    q = (x @ w_q.T).view(b, t, n_heads, d).transpose(1, 2)
    k = (x @ w_k.T).view(b, t, n_kv_heads, d).transpose(1, 2)
    v = (x @ w_v.T).view(b, t, n_kv_heads, d).transpose(1, 2)
    k = k[:, None].expand(b, n, n_kv_heads, t, d).reshape(b, n_heads, t, d)
    v = v[:, None].expand(b, n, n_kv_heads, t, d).reshape(b, n_heads, t, d)
    s = (q @ k.mT) * d**-0.5 + torch.full((t, t), -torch.inf).triu(1)
    return (s.softmax(-1) @ v).transpose(1, 2).flatten(2) @ w_o.T
