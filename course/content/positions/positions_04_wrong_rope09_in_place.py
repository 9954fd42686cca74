def rotate(x, cos, sin):
    x = x.clone()
    n = x.shape[-1] // 2
    x[..., :n] = x[..., :n] * cos - x[..., n:] * sin
    x[..., n:] = x[..., n:] * cos + x[..., :n] * sin
    return x
