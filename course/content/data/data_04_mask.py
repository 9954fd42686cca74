import torch
from torch.nn.utils.rnn import pad_sequence


def pad_batch(sequences, pad_id):
    ids = pad_sequence([torch.tensor(s) for s in sequences], True, padding_value=pad_id)
    lengths = torch.tensor([len(s) for s in sequences])[:, None]
    has_next = torch.arange(ids.shape[1]) < lengths - 1
    return ids, torch.where(has_next, ids.roll(-1, 1), -100)
