from math import cos, pi


def learning_rate(step, max_rate, min_rate, warmup_steps, total_steps):
    last = total_steps - 1
    if step >= last:
        return min_rate
    if step >= warmup_steps:
        angle = pi * (step - warmup_steps) / (last - warmup_steps)
        middle, half = (max_rate + min_rate) / 2, (max_rate - min_rate) / 2
        return middle + half * cos(angle)
    return (step + 1) * max_rate / (warmup_steps + 1)
