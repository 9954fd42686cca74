def layer_norm(x, weight, bias, eps):
    n = x.size(-1)
    s1 = x.sum(-1).unsqueeze(-1) / n
    s2 = x.pow(2).sum(-1).unsqueeze(-1) / n
    return weight * (x - s1) / (s2 - s1**2 + eps).sqrt() + bias
