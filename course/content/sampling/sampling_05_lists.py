import torch


def repetition_penalty(logits, seen_ids, penalty):
    rows = logits.tolist()
    for row, ids in zip(rows, seen_ids):
        done = []
        for i in ids:
            if i in done:
                continue
            done.append(i)
            row[i] = row[i] * penalty if row[i] < 0 else row[i] / penalty
    return torch.tensor(rows)
