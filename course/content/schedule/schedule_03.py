# zh: 一次训练：880 个微批次，每 8 个合成一次更新；η_max = 1e-3，η_min = 2e-4，预热 w = 9 步，
# zh: 之后是余弦，N 是更新的次数，最后一次是第 N − 1 步。公式见 schedule.02。先在纸上算，再填数。
# en: One training: 880 micro-batches, 8 of them to an update; η_max = 1e-3, η_min = 2e-4, warm-up
# en: w = 9, then cosine; N is the number of updates, the last is step N − 1. The formula is that of
# en: schedule.02. Work it out on paper, then fill in.

# zh: N：更新几次，也就是 total_steps
# en: N: how many updates, which is total_steps
updates = (
    # >>>
    880 // 8
    # <<< None
)
# zh: 第 0 步的学习率
# en: the rate at step 0
first_rate = (
    # >>>
    1e-3 * 1 / (9 + 1)
    # <<< None
)
# zh: 最早的、学习率等于 η_max 的是第几步
# en: the first step whose rate is η_max
top_step = (
    # >>>
    9
    # <<< None
)
# zh: 余弦走到一半（p = 1/2）时的学习率
# en: the rate half-way along the cosine (p = 1/2)
middle_rate = (
    # >>>
    (1e-3 + 2e-4) / 2
    # <<< None
)
# zh: 最后一次更新的学习率
# en: the rate of the last update
last_rate = (
    # >>>
    2e-4
    # <<< None
)
