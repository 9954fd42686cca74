import heapq


def beam_search(next_log_probs, start, n_steps, width):
    beams = [(0.0, tuple(start))]
    for _ in range(n_steps):
        longer = []
        for score, ids in beams:
            logp = next_log_probs(list(ids))
            for v in logp.topk(min(width, len(logp))).indices.tolist():
                longer.append((score + float(logp[v]), ids + (v,)))
        beams = heapq.nlargest(width, longer)
    return [(list(ids), score) for score, ids in beams]
