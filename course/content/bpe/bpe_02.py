def count_pairs(ids: list[int]) -> dict[tuple[int, int], int]:
    """
    zh: 每一对相邻的编号各出现几次：每个位置都算，重叠的也算（5 5 5 里有两对）
    en: How often each pair of neighbours occurs: at every place, overlaps included (5 5 5 has two)
    """
    # >>>
    counts = {}
    for pair in zip(ids, ids[1:]):
        counts[pair] = counts.get(pair, 0) + 1
    return counts
    # <<< raise NotImplementedError
