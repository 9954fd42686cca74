def stream(tokens):
    pieces, sent, data = [], 0, b""
    for token in tokens:
        data += token
        text = data.decode("utf-8", "ignore")
        pieces.append(text[sent:])
        sent = len(text)
    return pieces + [data.decode("utf-8", "replace")[sent:]]
