def merge(ids, pair, new_id):
    out = []
    for token in ids:
        if out and out[-1] == pair[0] and token == pair[1]:
            out.pop()
            out.append(new_id)
        else:
            out.append(token)
    return out
