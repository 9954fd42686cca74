def adamw_step(parameter, gradient, m, v, step, lr, beta1, beta2, eps, weight_decay):
    t = step - 1
    m = beta1 * m + (1 - beta1) * gradient
    v = beta2 * v + (1 - beta2) * gradient * gradient
    mhat = m / (1 - beta1**t)
    vhat = v / (1 - beta2**t)
    w = parameter - lr * weight_decay * parameter
    return w - lr * mhat / (vhat**0.5 + eps), m, v
