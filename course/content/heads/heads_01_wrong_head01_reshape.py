def split_heads(x, n_heads):
    b, t, c = x.size()
    return x.reshape(b, n_heads, t, c // n_heads)
