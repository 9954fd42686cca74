import torch
import torch.nn.functional as F


def feed_forward(x, w_up, b_up, w_down, b_down):
    y = torch.empty(x.shape)
    for b in range(x.shape[0]):
        for t in range(x.shape[1]):
            y[b, t] = w_down @ F.gelu(w_up @ x[b, t] + b_up) + b_down
    return y
