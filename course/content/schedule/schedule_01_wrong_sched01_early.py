def warmup_rate(step, max_rate, warmup_steps):
    fraction = min(step / warmup_steps, 1)
    return fraction * max_rate
