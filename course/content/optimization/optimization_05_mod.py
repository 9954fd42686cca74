def next_scale(scale, good_steps, overflowed, interval):
    good = 0 if overflowed else (good_steps + 1) % interval
    if overflowed:
        scale *= 0.5
    elif good == 0:
        scale *= 2.0
    return scale, good
