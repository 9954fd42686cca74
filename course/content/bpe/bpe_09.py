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


def train_pieces(pieces: dict[str, int], n_merges: int) -> list[tuple[int, int]]:
    """
    zh: 语料已切成小片，各带次数；合并从不越过小片的边界。这份代码有一处错，找出来改好
    en: The corpus is cut into pieces with their counts; merges never cross a border. One fault is
    en: in here
    """
    words = [(list(piece.encode("utf-8")), n) for piece, n in pieces.items()]
    merges = []
    for i in range(n_merges):
        # >>>
        counts = {}
        for ids, n in words:
            for pair in zip(ids, ids[1:]):
                counts[pair] = counts.get(pair, 0) + n
        best = max(counts, key=lambda pair: counts[pair])
        words = [(merge(ids, best, 256 + i), n) for ids, n in words]
        # <<<
        merges.append(best)
    return merges
