def generate(next_logits, ids, n_new, choose, context):
    if n_new == 0:
        return ids
    token = choose(next_logits(ids[-context:]))
    return generate(next_logits, [*ids, token], n_new - 1, choose, context)
