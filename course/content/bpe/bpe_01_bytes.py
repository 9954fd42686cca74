def to_bytes(text):
    return bytes(text, "utf8")
