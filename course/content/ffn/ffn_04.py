# zh: D = 768。先在纸上算，再填数；写成算式也行。
# en: D = 768. Work it out on paper; expressions will do.

# zh: 普通的前馈中间多宽（GPT-2 的习惯）
# en: how wide the plain feed-forward is inside (as GPT-2 has it)
inner_width = (
    # >>>
    4 * 768
    # <<< None
)
# zh: 它有多少参数（两个矩阵，都带偏置）
# en: its parameters (two matrices, both with biases)
parameters = (
    # >>>
    2 * 768 * 3072 + 3072 + 768
    # <<< None
)
# zh: 不算偏置，前馈的参数是注意力（四个 D×D）的几倍
# en: without biases, how many times the parameters of attention (four D×D)
times_attention = (
    # >>>
    8 * 768**2 / (4 * 768**2)
    # <<< None
)
# zh: SwiGLU 要有同样多的参数（都不算偏置），中间该多宽
# en: how wide SwiGLU must be inside for as many parameters (no biases in either)
gated_width = (
    # >>>
    8 * 768 // 3
    # <<< None
)
# zh: 宽 1000 的 SwiGLU 有多少参数（没有偏置）
# en: the parameters of a SwiGLU that is 1000 wide inside (no biases)
gated_parameters = (
    # >>>
    3 * 768 * 1000
    # <<< None
)
