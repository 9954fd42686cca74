from collections import Counter


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


def train_pieces(pieces, n_merges):
    split = {piece: list(piece.encode("utf-8")) for piece in pieces}
    merges = []
    while len(merges) < n_merges:
        counts = Counter()
        for piece, ids in split.items():
            for pair in zip(ids, ids[1:]):
                counts[pair] += pieces[piece]
        pair = counts.most_common(1)[0][0]
        merges.append(pair)
        split = {p: merge(ids, pair, 255 + len(merges)) for p, ids in split.items()}
    return merges
