# zh: 一个 1 亿（10⁸）参数的模型，全部用 float32（4 字节）训练，1 MB = 10⁶ 字节。只算权重、梯度、
# zh: 优化器的状态，不算激活。先在纸上算，再填数。
# en: A model of 100 million (10⁸) parameters, trained wholly in float32 (4 bytes); 1 MB = 10⁶
# en: bytes. Count weights, gradients and the optimizer's state, not the activations. Work it out on
# en: paper, then fill in.

# zh: 权重多少 MB
# en: the weights, in MB
weights_mb = (
    # >>>
    1e8 * 4 / 1e6
    # <<< None
)
# zh: AdamW 的状态（m 与 v）多少 MB
# en: AdamW's state (m and v), in MB
optimizer_mb = (
    # >>>
    1e8 * 4 * 2 / 1e6
    # <<< None
)
# zh: 用 AdamW 训练全部参数，一共多少 MB
# en: training all parameters with AdamW, in total
total_mb = (
    # >>>
    1e8 * 4 * (1 + 1 + 2) / 1e6
    # <<< None
)
# zh: 换成最朴素的 SGD（没有动量），一共多少 MB
# en: with the plainest SGD (no momentum) instead, in total
sgd_mb = (
    # >>>
    1e8 * 4 * (1 + 1) / 1e6
    # <<< None
)
# zh: 用 AdamW 只训练另加的 100 万（10⁶）个参数，原来的 1 亿个冻结，一共多少 MB
# en: AdamW on 1 million (10⁶) added parameters only, the 100 million frozen, in total
lora_mb = (
    # >>>
    (1e8 * 4 + 1e6 * 4 * (1 + 1 + 2)) / 1e6
    # <<< None
)
