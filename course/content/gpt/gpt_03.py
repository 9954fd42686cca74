# zh: GPT-2 small：词表 50257，上下文 1024，D = 768，12 层，前馈宽 4·768，处处有偏置，
# zh: 每块两个 LayerNorm、最后一个，词表与输出共用。写算式就行。
# en: GPT-2 small: vocabulary 50257, context 1024, D = 768, 12 layers, feed-forward 4·768 wide,
# en: biases everywhere, two LayerNorms a block and one at the end, tied output. Expressions do.

# zh: 词向量表的参数
# en: parameters of the token table
token_table_parameters = (
    # >>>
    50257 * 768
    # <<< None
)
# zh: 位置表的参数
# en: parameters of the position table
position_table_parameters = (
    # >>>
    1024 * 768
    # <<< None
)
# zh: 一个块的注意力：四个矩阵与四个偏置
# en: attention of one block: four matrices and four biases
attention_parameters = (
    # >>>
    4 * 768**2 + 4 * 768
    # <<< None
)
# zh: 一个块的前馈：两个矩阵与两个偏置
# en: feed-forward of one block: two matrices and two biases
feed_forward_parameters = (
    # >>>
    8 * 768**2 + 4 * 768 + 768
    # <<< None
)
# zh: 全部归一化
# en: all norms together
norm_parameters = (
    # >>>
    (2 * 12 + 1) * (2 * 768)
    # <<< None
)
# zh: 总数
# en: the total
total = (
    # >>>
    50257 * 768 + 1024 * 768 + 12 * (12 * 768**2 + 9 * 768) + 25 * 2 * 768
    # <<< None
)
