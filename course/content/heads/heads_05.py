# zh: D = 512，8 个头，没有偏置。先在纸上算，再填数；写成算式也行，比如 2 * 512。
# en: D = 512, 8 heads, no biases. Work it out on paper; an expression such as 2 * 512 will do.

# zh: 每个头多宽
# en: how wide each head is
head_width = (
    # >>>
    512 // 8
    # <<< None
)
# zh: 多头注意力（W_Q、W_K、W_V、W_O）一共多少参数
# en: parameters of multi-head attention (W_Q, W_K, W_V, W_O)
parameters = (
    # >>>
    4 * 512**2
    # <<< None
)
# zh: 头数改成 16，其余不变，一共多少参数
# en: parameters with 16 heads, everything else the same
parameters_16_heads = (
    # >>>
    4 * 512 * 512
    # <<< None
)
# zh: 还是 8 个查询头，键值头只留 2 个（分组查询），一共多少参数
# en: parameters with 8 query heads and only 2 key-value heads (grouped queries)
parameters_grouped = (
    # >>>
    2 * 512**2 + 2 * 512 * (2 * 64)
    # <<< None
)
# zh: 2 个键值头时，一个词元在这一层的缓存里要记多少个数（K 与 V）
# en: with 2 key-value heads, how many numbers the cache of this layer keeps of one token (K and V)
cached_grouped = (
    # >>>
    2 * (64 * 2)
    # <<< None
)
