def reuse(cache, old_ids, new_ids):
    n = max(i for i in range(len(new_ids)) if i <= len(old_ids) and old_ids[:i] == new_ids[:i])
    cache["k"] = cache["k"].narrow(2, 0, n)
    cache["v"] = cache["v"].narrow(2, 0, n)
    return cache, new_ids[n:]
