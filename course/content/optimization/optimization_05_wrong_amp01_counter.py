def next_scale(scale, good_steps, overflowed, interval):
    if overflowed:
        scale = scale / 2
    else:
        good_steps = good_steps + 1
        if good_steps == interval:
            good_steps = 0
            scale = scale * 2
    return scale, good_steps
