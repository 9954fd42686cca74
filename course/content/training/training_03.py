import math

# zh: 语料有 2²⁰ 个词元，词表 4096；一批 16 行，每行 256 个词元，每 4 批合成一次更新。
# zh: 另有一个 1 亿（10⁸）参数的模型，要在 10⁹ 个词元上训练。先在纸上算，再填数（可以写算式）。
# en: A corpus of 2²⁰ tokens, a vocabulary of 4096; 16 rows of 256 tokens to a batch, 4 batches to
# en: an update. Besides, a model of 100 million (10⁸) parameters is to train on 10⁹ tokens. Work it
# en: out on paper, then fill in (expressions are fine).

# zh: 一次更新用多少个词元
# en: how many tokens one update uses
tokens_per_step = (
    # >>>
    16 * 256 * 4
    # <<< None
)
# zh: 把语料走一遍要更新几次
# en: how many updates go once through the corpus
steps_per_epoch = (
    # >>>
    2**20 / (16 * 256 * 4)
    # <<< None
)
# zh: 还没训练的模型，第一步的损失大约是多少（每个词的概率都一样）
# en: about how large the first loss of an untrained model is (all tokens equally likely)
first_loss = (
    # >>>
    math.log(4096)
    # <<< None
)
# zh: 那时的困惑度（perplexity）
# en: the perplexity then
first_perplexity = (
    # >>>
    4096
    # <<< None
)
# zh: 训练 10⁸ 个参数、10⁹ 个词元，大约要多少次浮点运算（前向与反向）
# en: about how many floating-point operations training takes, 10⁸ parameters on 10⁹ tokens (forward
# en: and backward)
training_flops = (
    # >>>
    6 * 1e8 * 1e9
    # <<< None
)
