import torch


def warmup_rate(step, max_rate, warmup_steps):
    ramp = torch.linspace(0, max_rate, warmup_steps + 2)
    return ramp[min(step + 1, warmup_steps + 1)].item()
