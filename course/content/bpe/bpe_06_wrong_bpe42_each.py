def decode(ids, merges):
    def spell(token):
        return bytes([token]) if token < 256 else b"".join(map(spell, merges[token - 256]))

    text = ""
    for token in ids:
        text += spell(token).decode("utf-8", "replace")
    return text
