def encode(text, merges):
    ranks = {pair: 256 + i for i, pair in enumerate(merges)}
    ids = list(text.encode("utf-8"))
    while len(ids) > 1:
        new, i = min((ranks.get((a, b), 10**9), i) for i, (a, b) in enumerate(zip(ids, ids[1:])))
        if new == 10**9:
            break
        ids = ids[:i] + [new] + ids[i + 2 :]
    return ids
