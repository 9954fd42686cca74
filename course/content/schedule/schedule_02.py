import math


def learning_rate(
    step: int, max_rate: float, min_rate: float, warmup_steps: int, total_steps: int
) -> float:
    """
    zh: 预热之后沿半个余弦降下来：第 w 步是 η_max，最后一次更新（第 N − 1 步）恰好是 η_min，
    zh: 以后停在那里。w = warmup_steps，N = total_steps
    en: After the warm-up, down along half a cosine: η_max at step w, exactly η_min at the last
    en: update (step N − 1), and there it stays. w = warmup_steps, N = total_steps

    s < w:  η = η_max · (s + 1) / (w + 1)
    s ≥ w:  η = η_min + (η_max − η_min) · ½(1 + cos πp),   p = (s − w) / (N − 1 − w),  p ≤ 1
    """
    # >>>
    if step < warmup_steps:
        return max_rate * (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / (total_steps - 1 - warmup_steps)
    progress = min(1.0, progress)
    share = 0.5 * (1 + math.cos(math.pi * progress))
    return min_rate + (max_rate - min_rate) * share
    # <<< raise NotImplementedError
