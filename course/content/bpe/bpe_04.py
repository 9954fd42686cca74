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


def train_bpe(text: str, n_merges: int) -> list[tuple[int, int]]:
    """
    zh: 反复合并最常相邻的一对，交回学到的 n_merges 对，按学到的先后；第 i 对的新编号是 256 + i
    zh: 次数并列时取文中先出现的；再没有可合并的对时提前停
    en: Merge the most frequent pair again and again; return n_merges pairs in the order learned,
    en: pair i becoming id 256 + i. Of equal counts, the one seen first; stop when no pair is left
    """
    # >>>
    ids = list(text.encode("utf-8"))
    merges = []
    for i in range(n_merges):
        counts = count_pairs(ids)
        if not counts:
            break
        best = max(counts, key=lambda pair: counts[pair])
        ids = merge(ids, best, 256 + i)
        merges.append(best)
    return merges
    # <<< raise NotImplementedError
