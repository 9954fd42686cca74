import math

import torch


def adamw_step(parameter, gradient, m, v, step, lr, beta1, beta2, eps, weight_decay):
    rows = []
    numbers = [t.flatten().tolist() for t in (parameter, gradient, m, v)]
    for w, g, a, b in zip(*numbers):
        a = beta1 * a + (1 - beta1) * g
        b = beta2 * b + (1 - beta2) * g * g
        w -= lr * weight_decay * w
        w -= lr * (a / (1 - beta1**step)) / (math.sqrt(b / (1 - beta2**step)) + eps)
        rows.append((w, a, b))
    return tuple(torch.tensor(column).reshape(parameter.shape) for column in zip(*rows))
