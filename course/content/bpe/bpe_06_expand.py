def decode(ids, merges):
    out = bytearray()
    waiting = list(reversed(ids))
    while waiting:
        token = waiting.pop()
        if token < 256:
            out.append(token)
        else:
            left, right = merges[token - 256]
            waiting += [right, left]
    return str(out, "utf-8", "replace")
