import torch


def beam_search(next_log_probs, start, n_steps, width):
    paths, totals = [list(start)], torch.zeros(1)
    for _ in range(n_steps):
        scores = totals[:, None] + torch.stack([next_log_probs(p) for p in paths])
        n = scores.shape[1]
        totals, best = scores.flatten().topk(min(width, scores.numel()))
        paths = [paths[i // n] + [i % n] for i in best.tolist()]
    return list(zip(paths, totals))
