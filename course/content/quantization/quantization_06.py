# zh: 一个 70 亿（7·10⁹）参数的模型，1 GB = 10⁹ 字节。先在纸上算，再填数。
# en: A model of 7 billion (7·10⁹) parameters; 1 GB = 10⁹ bytes. Work it out on paper, then fill in.

# zh: 存成 float16 多少 GB
# en: in float16, how many GB
fp16_gb = (
    # >>>
    7e9 * 2 / 1e9
    # <<< None
)
# zh: 存成 int8 多少 GB（尺子太少，不算）
# en: in int8 (there are so few scales that they do not count)
int8_gb = (
    # >>>
    7e9 * 1 / 1e9
    # <<< None
)
# zh: 存成 int4，每 64 个权重一把 16 位的尺子：平均每个权重多少比特
# en: in int4 with a 16-bit scale for every 64 weights: how many bits a weight on average
int4_bits = (
    # >>>
    4 + 16 / 64
    # <<< None
)
# zh: 那么一共多少 GB
# en: and how many GB that is
int4_gb = (
    # >>>
    7e9 * (4 + 16 / 64) / 8 / 1e9
    # <<< None
)
# zh: 一行权重里绝对值最大的是 12.7；absmax 的 INT8（除以 127），取整最多错多少
# en: the largest absolute value of a row is 12.7; with absmax INT8 (÷ 127), the largest error of
# en: rounding
worst_error = (
    # >>>
    12.7 / 127 / 2
    # <<< None
)
