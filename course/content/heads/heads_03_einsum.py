import torch


def multi_head_attention(x, w_q, w_k, w_v, w_o, n_heads):
    d = x.shape[-1] // n_heads
    wq, wk, wv = (w.reshape(n_heads, d, -1) for w in (w_q, w_k, w_v))
    q = torch.einsum("btc,hdc->bhtd", x, wq) / d**0.5
    k = torch.einsum("btc,hdc->bhtd", x, wk)
    v = torch.einsum("btc,hdc->bhtd", x, wv)
    s = torch.einsum("bhid,bhjd->bhij", q, k)
    s = s + torch.full(s.shape[-2:], -torch.inf).triu(1)
    o = torch.einsum("bhij,bhjd->bihd", torch.softmax(s, -1), v)
    return torch.einsum("bihd,ohd->bio", o, w_o.reshape(-1, n_heads, d))
