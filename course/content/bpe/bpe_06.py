def decode(ids: list[int], merges: list[tuple[int, int]]) -> str:
    """
    zh: 编号变回文本：0 到 255 是字节，256 + i 是第 i 对；结尾可能只有半个字，显示成 �，不出错
    en: Ids back to text: 0 to 255 are bytes, 256 + i is pair i; the end may be half a character,
    en: shown as � and no error
    """
    # >>>
    pieces = [bytes([byte]) for byte in range(256)]
    for left, right in merges:
        pieces.append(pieces[left] + pieces[right])
    data = b"".join(pieces[i] for i in ids)
    return data.decode("utf-8", errors="replace")
    # <<< raise NotImplementedError
