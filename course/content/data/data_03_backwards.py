def split(documents, n_val):
    names = [d.strip() for d in documents]
    unique = [d for i, d in enumerate(documents) if names.index(names[i]) == i]
    val = []
    while len(val) < n_val:
        val.insert(0, unique.pop())
    return unique, val
