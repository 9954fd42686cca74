def reuse(cache, old_ids, new_ids):
    same = 0
    for a, b in zip(old_ids, new_ids[:-1]):
        if a != b:
            break
        same += 1
    return cache, new_ids[same:]
