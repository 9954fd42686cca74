import torch


def adamw_step(parameter, gradient, m, v, step, lr, beta1, beta2, eps, weight_decay):
    m = torch.lerp(m, gradient, 1 - beta1)
    v = v.clone().mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    c1, c2 = 1 - beta1**step, 1 - beta2**step
    denominator = v.sqrt() / c2**0.5 + eps
    update = m / denominator * (lr / c1) + lr * weight_decay * parameter
    return parameter - update, m, v
