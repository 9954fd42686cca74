def to_bytes(text):
    ids = []
    for character in text:
        ids.append(ord(character))
    return ids
