def next_scale(scale: float, good_steps: int, overflowed: bool, interval: int) -> tuple[float, int]:
    """
    zh: 动态的损失放大。一步走完之后：梯度溢出了，倍数减半，重新数；没有溢出就记一步，
    zh: 连着 interval 步都没有溢出，倍数加倍，也重新数
    en: Dynamic loss scaling, after each step: if the gradients overflowed, halve the scale and
    en: count anew; if not, count one good step, and after `interval` good steps in a row double the
    en: scale and count anew

    scale, good_steps → (scale, good_steps)
    """
    # >>>
    if overflowed:
        return scale / 2, 0
    good_steps += 1
    if good_steps >= interval:
        return scale * 2, 0
    return scale, good_steps
    # <<< raise NotImplementedError
