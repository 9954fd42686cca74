def quantized_linear(x, q, scale, bias=None):
    y = x.matmul(q.double().t())
    if bias is not None:
        y = y + bias
    return y * scale[None, :]
