def merge_heads(x):
    b, h, t, d = x.size()
    return x.contiguous().view(b, t, h * d)
