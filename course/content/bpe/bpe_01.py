def to_bytes(text: str) -> list[int]:
    """
    zh: 文本变成 UTF-8 字节，每个是 0 到 255 的整数；一个字也不改，才能还原
    en: Text to UTF-8 bytes, each an integer from 0 to 255; nothing is altered, so that it can be
    en: restored
    """
    # >>>
    return list(text.encode("utf-8"))
    # <<< raise NotImplementedError
