import torch


def block(x, ln1, attn, ln2, mlp):
    rows = []
    for text in x.split(1):
        h = attn(ln1(text)) + text
        rows.append(mlp(ln2(h)) + h)
    return torch.cat(rows)
