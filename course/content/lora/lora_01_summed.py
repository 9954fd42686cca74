def lora_forward(x, w, a, b, alpha, r):
    full = w.transpose(0, 1) + a.matmul(b).mul(alpha).div(r)
    return x.matmul(full)
