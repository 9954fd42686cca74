def decode(ids, merges):
    def spell(token):
        if token < 256:
            return bytes([token])
        return b"".join(spell(part) for part in merges[token - 256])

    return b"".join(map(spell, ids)).decode(errors="replace")
