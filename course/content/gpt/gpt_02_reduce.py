from functools import reduce

import torch
import torch.nn.functional as F


def gpt_forward(ids, token_table, position_table, blocks, final_norm):
    positions = torch.arange(ids.size(-1))
    x = F.embedding(ids, token_table) + F.embedding(positions, position_table)
    x = reduce(lambda h, f: f(h), blocks, x)
    return F.linear(final_norm(x), token_table)
