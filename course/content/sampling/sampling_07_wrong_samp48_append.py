def generate(next_logits, ids, n_new, choose, context):
    while n_new > 0:
        ids.append(choose(next_logits(ids[max(0, len(ids) - context) :])))
        n_new -= 1
    return ids
