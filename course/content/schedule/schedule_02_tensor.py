import torch


def learning_rate(step, max_rate, min_rate, warmup_steps, total_steps):
    s = torch.tensor(float(step))
    up = (s + 1) / (warmup_steps + 1)
    p = ((s - warmup_steps) / (total_steps - warmup_steps - 1)).clamp(0, 1)
    down = torch.cos(p * torch.pi / 2) ** 2
    return (
        max_rate * up
        if up < 1
        else torch.lerp(torch.tensor(min_rate), torch.tensor(max_rate), down)
    )
