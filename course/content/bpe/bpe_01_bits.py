def to_bytes(text):
    out = []
    for c in map(ord, text):
        if c < 128:
            out.append(c)
        elif c < 2048:
            out += [192 | c >> 6, 128 | c & 63]
        elif c < 65536:
            out += [224 | c >> 12, 128 | c >> 6 & 63, 128 | c & 63]
        else:
            out += [240 | c >> 18, 128 | c >> 12 & 63, 128 | c >> 6 & 63, 128 | c & 63]
    return out
