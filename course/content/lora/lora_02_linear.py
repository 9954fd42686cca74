import torch


def lora_init(d_in, d_out, r):
    down = torch.nn.Linear(d_in, r, bias=False)
    a = down.weight.detach().T.contiguous()
    return a, torch.zeros((r, d_out))
