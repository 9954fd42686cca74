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


def encode(text: str, merges: list[tuple[int, int]]) -> list[int]:
    """
    zh: 文本变成编号：先拆成字节，再按学到的先后重放合并；第 i 对的新编号是 256 + i
    en: Text to ids: bytes, then the merges replayed in the order learned; pair i becomes 256 + i
    """
    # >>>
    ids = list(text.encode("utf-8"))
    for i, pair in enumerate(merges):
        ids = merge(ids, pair, 256 + i)
    return ids
    # <<< raise NotImplementedError
