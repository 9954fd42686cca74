from collections import defaultdict


def count_pairs(ids):
    seen = defaultdict(int)
    for i in range(1, len(ids)):
        seen[ids[i - 1], ids[i]] += 1
    return dict(seen)
