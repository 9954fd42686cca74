def windows(tokens, block_size):
    return [i * block_size for i in range((len(tokens) - 1) // block_size)]
