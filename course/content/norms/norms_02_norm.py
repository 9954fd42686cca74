def rms_norm(x, weight, eps):
    length = x.norm(dim=-1, keepdim=True)
    return x * weight * (length**2 / x.shape[-1] + eps) ** -0.5
