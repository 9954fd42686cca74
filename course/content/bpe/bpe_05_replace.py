def encode(text, merges):
    ids = [*text.encode()]
    for i in range(len(merges)):
        a, b = merges[i]
        j = 0
        while j < len(ids) - 1:
            if ids[j] == a and ids[j + 1] == b:
                ids[j] = 256 + i
                del ids[j + 1]
            j += 1
    return ids
