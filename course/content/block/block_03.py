# zh: 12 个块，每块两条支路。进入第一块时残差流的方差是 1，
# zh: 每条支路加上一份互不相关、方差是 1 的数。
# en: 12 blocks with two branches each. The stream enters with variance 1, and each branch adds
# en: uncorrelated numbers of variance 1.

# zh: Pre-LN：走完 12 块，残差流的方差
# en: Pre-LN: the stream's variance after 12 blocks
pre_variance = (
    # >>>
    1 + 2 * 12
    # <<< None
)
# zh: 它的标准差
# en: its standard deviation
pre_deviation = (
    # >>>
    25**0.5
    # <<< None
)
# zh: 每条支路的标准差先除以 √(2·12)，走完 12 块的方差
# en: the variance after 12 blocks if every branch's standard deviation is divided by √(2·12)
scaled_variance = (
    # >>>
    1 + 24 * (1 / 24)
    # <<< None
)
# zh: Post-LN（γ = 1，β = 0）：走完 12 块的方差
# en: Post-LN (γ = 1, β = 0): the variance after 12 blocks
post_variance = (
    # >>>
    1
    # <<< None
)
