# zh: 一个 768 × 768 的线性层（没有偏置）配上 r = 8 的 LoRA；模型有 12 块，每块给 q、v 两个投影
# zh: 都配上。A 随机、B 全零。先在纸上算，再填数；后两问填 True 或 False。
# en: A 768 × 768 linear layer (no bias) with LoRA of r = 8; the model has 12 blocks, in each of
# en: which the q and v projections get one. A is random, B all zeros. Work it out on paper, then
# en: fill in; the last two are True or False.

# zh: 这一层原来有多少个权重
# en: how many weights the layer has by itself
full_count = (
    # >>>
    768 * 768
    # <<< None
)
# zh: 这一层的 LoRA 有多少个权重
# en: how many weights the layer's LoRA has
lora_count = (
    # >>>
    2 * 768 * 8
    # <<< None
)
# zh: 整个模型要训练多少个权重
# en: how many weights are trained in the whole model
model_count = (
    # >>>
    12 * 2 * (2 * 768 * 8)
    # <<< None
)
# zh: 第一次反向传播之后，A 的梯度全是 0 吗
# en: after the first backward pass, is A's gradient all 0
a_stays_first = (
    # >>>
    True
    # <<< None
)
# zh: 第一次反向传播之后，B 的梯度全是 0 吗
# en: after the first backward pass, is B's gradient all 0
b_stays_first = (
    # >>>
    False
    # <<< None
)
