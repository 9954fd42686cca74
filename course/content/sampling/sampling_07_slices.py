def generate(next_logits, ids, n_new, choose, context):
    text = ids[:]
    while len(text) < len(ids) + n_new:
        start = max(0, len(text) - context)
        text += [choose(next_logits(text[start:]))]
    return text
