import math


def perplexity(losses: list[float], counts: list[int]) -> float:
    """
    zh: 几批的平均损失（每词元，自然对数）与各批的词元数 → 整份文本的困惑度
    en: The mean losses of some batches (per token, natural logarithm) and their numbers of tokens
    en: → the perplexity of the whole text
    """
    # >>>
    total = sum(loss * count for loss, count in zip(losses, counts))
    return math.exp(total / sum(counts))
    # <<< raise NotImplementedError
