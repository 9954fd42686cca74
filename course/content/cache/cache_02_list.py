def new_positions(cache, n_new):
    start = 0
    if "k" in cache:
        start = cache["k"].size(-2)
    return [start + i for i in range(n_new)]
