def stream(tokens: list[bytes]) -> list[str]:
    """
    zh: 词元一个个到来，每来一个，交出已经完整的新字；半个字扣住，等凑齐再交
    zh: 最后多一项：还扣着的半个字，以 � 交出（没有就是空串）。全部接起来就是原文
    en: Tokens arrive one by one; after each, give the new complete characters and hold back
    en: half a character until the rest comes. One more item ends the list: what is still held, as
    en: �, or an empty string. Joined, they are the text

    tokens: pieces of UTF-8, cut anywhere → len(tokens) + 1 strings
    """
    # >>>
    shown, held = [], b""
    for token in tokens:
        held += token
        try:
            held.decode("utf-8")
            whole = len(held)
        except UnicodeDecodeError as error:
            whole = error.start
        shown.append(held[:whole].decode("utf-8"))
        held = held[whole:]
    shown.append(held.decode("utf-8", errors="replace"))
    return shown
    # <<< raise NotImplementedError
