def layer_norm(x, weight, bias, eps):
    mean = x.mean(1, keepdim=True)
    var = x.var(1, unbiased=False, keepdim=True)
    return weight * (x - mean) / (var + eps).sqrt() + bias
