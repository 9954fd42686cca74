def repeat_kv(x, n_repeats):
    b, g, t, d = x.shape
    return x[:, :, None].expand(b, g, n_repeats, t, d).reshape(b, g * n_repeats, t, d)
