def reuse(cache, old_ids, new_ids):
    same = 0
    for a, b in zip(old_ids, new_ids[:-1]):
        if a != b:
            break
        same += 1
    if same == 0:
        return {}, list(new_ids)
    return {name: kept[:, :, :same].clone() for name, kept in cache.items()}, new_ids[same:]
