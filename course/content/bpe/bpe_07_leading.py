def stream(tokens):
    out, tail = [], b""
    for token in tokens:
        data = tail + token
        keep = 0
        for back in (1, 2, 3):
            if back <= len(data) and data[-back] >= 0xC0:
                size = 2 + (data[-back] >= 0xE0) + (data[-back] >= 0xF0)
                keep = back if size > back else 0
                break
        cut = len(data) - keep
        out.append(data[:cut].decode())
        tail = data[cut:]
    return out + [tail.decode(errors="replace")]
