import torch


def pack(documents, end_id):
    rows = []
    for d, document in enumerate(documents):
        for p, token in enumerate(document + [end_id]):
            rows.append((token, d, p))
    ids, owners, positions = zip(*rows)
    return list(ids), list(owners), list(positions)


def document_mask(owners):
    n = len(owners)
    mask = torch.zeros(n, n, dtype=torch.bool)
    for i in range(n):
        for j in range(i + 1):
            mask[i, j] = owners[i] == owners[j]
    return mask
