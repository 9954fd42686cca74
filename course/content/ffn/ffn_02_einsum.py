import torch


def feed_forward(x, w_up, b_up, w_down, b_down):
    gelu = torch.nn.GELU()
    h = gelu(torch.einsum("btd,fd->btf", x, w_up).add_(b_up))
    return torch.einsum("btf,df->btd", h, w_down) + b_down.view(1, 1, -1)
