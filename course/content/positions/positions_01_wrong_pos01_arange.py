import torch


def embed(ids, token_table, position_table):
    positions = torch.arange(len(ids))
    return token_table[ids] + position_table[positions].unsqueeze(1)
