def stream(tokens):
    pieces, shown = [], ""
    for i in range(1, len(tokens) + 1):
        text = b"".join(tokens[:i]).decode("utf-8", errors="replace")
        if text.endswith("\ufffd"):
            pieces.append("")
        else:
            pieces.append(text[len(shown) :])
            shown = text
    text = b"".join(tokens).decode("utf-8", errors="replace")
    return [*pieces, text[len(shown) :]]
