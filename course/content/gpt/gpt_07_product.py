def perplexity(losses, counts):
    n = sum(counts)
    result = 1.0
    for loss, count in zip(losses, counts):
        result *= 2.718281828459045 ** (loss * count / n)
    return result
