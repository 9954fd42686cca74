def stream(tokens):
    return [str(token, "utf-8", "replace") for token in tokens] + [""]
