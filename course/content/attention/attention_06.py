# zh: 五个词元，因果自注意力，每个查询与每个键的分数都是 0。先在纸上算，再填数。
# en: Five tokens, causal self-attention, every score is 0. Work it out on paper, then fill in.

# zh: 权重矩阵所有元素的和
# en: the sum of all entries of the weight matrix
rows_sum = (
    # >>>
    5
    # <<< None
)
# zh: 掩码里有多少格看得见
# en: how many cells of the mask are visible
visible = (
    # >>>
    5 * (5 + 1) // 2
    # <<< None
)
# zh: 第一个词元（第 0 行）给自己的权重
# en: the weight the first token (row 0) gives itself
first_weight = (
    # >>>
    1.0
    # <<< None
)
# zh: 最后一个词元（第 4 行）给第 0 个键的权重
# en: the weight the last token (row 4) gives key 0
last_weight = (
    # >>>
    1 / 5
    # <<< None
)
# zh: 第 1 行给第 3 个键的权重
# en: the weight row 1 gives key 3
hidden_weight = (
    # >>>
    0.0
    # <<< None
)
