def count_pairs(ids: list[int]) -> dict[tuple[int, int], int]:
    """
    zh: 你在 bpe.02 写的那个
    en: The one you wrote in bpe.02
    """
    counts: dict[tuple[int, int], int] = {}
    for pair in zip(ids, ids[1:]):
        counts[pair] = counts.get(pair, 0) + 1
    return counts


def merge(ids: list[int], pair: tuple[int, int], new_id: int) -> list[int]:
    """
    zh: 你在 bpe.03 写的那个
    en: The one you wrote in bpe.03
    """
    merged: list[int] = []
    for token in ids:
        if merged and (merged[-1], token) == pair:
            merged[-1] = new_id
        else:
            merged.append(token)
    return merged


def train_bpe(text, n_merges):
    counts = count_pairs(list(text.encode("utf-8")))
    return sorted(counts, key=counts.get, reverse=True)[:n_merges]
