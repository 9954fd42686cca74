import math

import torch


def lora_init(d_in, d_out, r):
    a = torch.empty(d_in, r)
    torch.nn.init.kaiming_uniform_(a, a=math.sqrt(5))
    b = torch.zeros(r, d_out)
    return a, b
