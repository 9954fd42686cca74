import math


def learning_rate(step, max_rate, min_rate, warmup_steps, total_steps):
    if step < warmup_steps:
        return max_rate * (step + 1) / (warmup_steps + 1)
    if step > total_steps:
        return min_rate
    ratio = (step - warmup_steps) / (total_steps - warmup_steps)
    coefficient = 0.5 * (1.0 + math.cos(math.pi * ratio))
    return min_rate + coefficient * (max_rate - min_rate)
