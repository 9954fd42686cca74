def beam_search(next_log_probs, start, n_steps, width):
    beams = [(list(start), 0.0)]
    for _ in range(n_steps):
        new = []
        for ids, score in beams:
            probs = next_log_probs(ids).exp()
            new += [(ids + [v], score + float(p)) for v, p in enumerate(probs)]
        beams = sorted(new, key=lambda b: -b[1])[:width]
    return beams
