def encode(text, merges):
    vocabulary = {bytes([b]): b for b in range(256)}
    names = [bytes([b]) for b in range(256)]
    for a, b in merges:
        names.append(names[a] + names[b])
        vocabulary[names[-1]] = len(names) - 1
    data, ids = text.encode("utf-8"), []
    while data:
        n = max(n for n in range(1, len(data) + 1) if data[:n] in vocabulary)
        ids.append(vocabulary[data[:n]])
        data = data[n:]
    return ids
