import torch


def grouped_query_attention(x, w_q, w_k, w_v, w_o, n_heads, n_kv_heads):
    B, T, D = x.shape
    d = D // n_heads
    n = n_heads // n_kv_heads
    q = (x @ w_q.T).reshape(B, T, n_kv_heads, n, d)
    k = (x @ w_k.T).reshape(B, T, n_kv_heads, d)
    v = (x @ w_v.T).reshape(B, T, n_kv_heads, d)
    s = torch.einsum("bignd,bjgd->bgnij", q, k) / d**0.5
    s = s.masked_fill(torch.ones(T, T).triu(1) == 1, -torch.inf)
    o = torch.einsum("bgnij,bjgd->bignd", s.softmax(-1), v)
    return o.reshape(B, T, D) @ w_o.T
