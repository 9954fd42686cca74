def warmup_rate(step, max_rate, warmup_steps):
    return max_rate * min(1.0, (step + 1) / (1 + warmup_steps))
