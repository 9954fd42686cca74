def merge(ids: list[int], pair: tuple[int, int], new_id: int) -> list[int]:
    """
    zh: 从左到右把每一处 pair 换成 new_id，交回新列表；重叠时左边的先得（5 5 5 → 9 5）
    en: Replace every `pair` by new_id, left to right, in a new list; of overlaps the left one wins
    en: (5 5 5 → 9 5)
    """
    # >>>
    merged, i = [], 0
    while i < len(ids):
        if ids[i] == pair[0] and i + 1 < len(ids) and ids[i + 1] == pair[1]:
            merged.append(new_id)
            i += 2
        else:
            merged.append(ids[i])
            i += 1
    return merged
    # <<< raise NotImplementedError
