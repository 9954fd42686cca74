# zh: x = (1, 3, 5, 7)，γ = 1，β = 0，ε = 0。填算式，或者四位有效数字。
# en: x = (1, 3, 5, 7), γ = 1, β = 0, ε = 0. Fill in expressions, or four significant digits.

# zh: LayerNorm 用的方差
# en: the variance that LayerNorm uses
variance = (
    # >>>
    (9 + 1 + 1 + 9) / 4
    # <<< None
)
# zh: LayerNorm 之后的第一个分量
# en: the first component after LayerNorm
layer_first = (
    # >>>
    (1 - 4) / 5**0.5
    # <<< None
)
# zh: 先把 x 放大十倍，再 LayerNorm，第一个分量
# en: the first component if x is made ten times larger before LayerNorm
layer_ten_times = (
    # >>>
    -30 / 500**0.5
    # <<< None
)
# zh: x 的均方根
# en: the root mean square of x
root_mean_square = (
    # >>>
    ((1 + 9 + 25 + 49) / 4) ** 0.5
    # <<< None
)
# zh: RMSNorm 之后的第一个分量
# en: the first component after RMSNorm
rms_first = (
    # >>>
    1 / 21**0.5
    # <<< None
)
# zh: 先给 x 的每个分量减 4，再 RMSNorm，第一个分量
# en: the first component if 4 is subtracted from every component before RMSNorm
rms_shifted = (
    # >>>
    -3 / 5**0.5
    # <<< None
)
