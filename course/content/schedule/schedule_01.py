def warmup_rate(step: int, max_rate: float, warmup_steps: int) -> float:
    """
    zh: 预热：学习率从小走到大，第 w 步起正好是 η_max。w = warmup_steps，步数从 0 数起
    en: Warm-up: the rate grows step by step and is η_max from step w on. w = warmup_steps;
    en: steps count from 0

    η(s) = η_max · (s + 1) / (w + 1)   (s < w)
    η(s) = η_max                       (s ≥ w)
    """
    # >>>
    if step < warmup_steps:
        return max_rate * (step + 1) / (warmup_steps + 1)
    return max_rate
    # <<< raise NotImplementedError
