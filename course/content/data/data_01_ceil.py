def windows(tokens, block_size):
    n = -(-(len(tokens) - 1) // block_size)
    return [min(i * block_size, len(tokens) - 1 - block_size) for i in range(n)]
