import torch


def adamw_step(parameter, gradient, m, v, step, lr, beta1, beta2, eps, weight_decay):
    g = gradient.add(parameter, alpha=weight_decay)
    m = m * beta1 + g * (1 - beta1)
    v = v * beta2 + g.square() * (1 - beta2)
    mh, vh = m / (1 - beta1**step), v / (1 - beta2**step)
    return parameter - lr * mh / (torch.sqrt(vh) + eps), m, v
