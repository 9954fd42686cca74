import torch


def pad_batch(sequences, pad_id):
    longest = max(map(len, sequences))
    ids, targets = [], []
    for s in sequences:
        missing = longest - len(s)
        ids.append(s + [pad_id] * missing)
        targets.append(s[1:] + [-100] * (missing + 1))
    return torch.tensor(ids), torch.tensor(targets)
