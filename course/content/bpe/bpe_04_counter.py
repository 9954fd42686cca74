from collections import Counter


def merge(ids, pair, new_id):
    out, i = [], 0
    while i < len(ids):
        if tuple(ids[i : i + 2]) == pair:
            out.append(new_id)
            i += 1
        else:
            out.append(ids[i])
        i += 1
    return out


def train_bpe(text, n_merges):
    ids = bytes(text, "utf-8")
    learned = []
    while len(learned) < n_merges and len(ids) > 1:
        ((pair, _),) = Counter(zip(ids, ids[1:])).most_common(1)
        ids = merge(ids, pair, 256 + len(learned))
        learned.append(pair)
    return learned
