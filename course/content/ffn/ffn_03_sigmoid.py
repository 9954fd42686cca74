import torch
import torch.nn.functional as F


def swiglu(x, w_gate, w_up, w_down):
    g, u = F.linear(x, torch.cat([w_gate, w_up])).chunk(2, dim=-1)
    return F.linear(u * g * torch.sigmoid(g), w_down)
