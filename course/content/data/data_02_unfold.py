def batch(tokens, starts, block_size):
    every = tokens.unfold(0, block_size, 1)
    return every[starts], every[starts + 1]
