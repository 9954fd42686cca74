# zh: 一个刚初始化的模型给每个词差不多的概率。填算式（math.log 就行），或者四位有效数字。
# en: A model just initialised gives every token about the same probability. Fill in expressions
# en: (math.log will do), or four significant digits.
import math

# zh: 词表 50257，刚开始的损失
# en: vocabulary 50257: the loss at the start
initial_loss = (
    # >>>
    math.log(50257)
    # <<< None
)
# zh: 此时的困惑度
# en: the perplexity then
initial_perplexity = (
    # >>>
    50257
    # <<< None
)
# zh: 改用 65 个字符的词表，刚开始的损失
# en: with a vocabulary of 65 characters, the loss at the start
characters_loss = (
    # >>>
    math.log(65)
    # <<< None
)
# zh: 给正确的词概率 ½ 时，这个位置的损失
# en: the loss of a position where the right token has probability ½
half_sure_loss = (
    # >>>
    math.log(2)
    # <<< None
)
# zh: 给正确的词概率 1 时，这个位置的损失
# en: the loss of a position where the right token has probability 1
certain_loss = (
    # >>>
    0.0
    # <<< None
)
