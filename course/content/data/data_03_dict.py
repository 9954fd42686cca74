def split(documents, n_val):
    first = {}
    for text in documents:
        first.setdefault(text.strip(), text)
    distinct = list(first.values())
    return distinct[:-n_val], distinct[-n_val:]
