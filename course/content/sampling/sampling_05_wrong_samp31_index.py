def repetition_penalty(logits, seen_ids, penalty):
    out = logits.clone()
    for b in range(len(seen_ids)):
        for i in seen_ids[b]:
            if out[b, i] < 0:
                out[b, i] *= penalty
            else:
                out[b, i] /= penalty
    return out
