import torch


def pack(documents, end_id):
    texts = [torch.tensor([*d, end_id]) for d in documents]
    lengths = torch.tensor([len(t) for t in texts])
    owners = torch.repeat_interleave(torch.arange(len(texts)), lengths)
    starts = lengths.cumsum(0) - lengths
    ids = torch.cat(texts)
    return ids, owners, torch.arange(len(ids)) - starts[owners]


def document_mask(owners):
    order = torch.arange(len(owners))
    return (owners.unsqueeze(1) == owners) & (order.unsqueeze(1) >= order)
