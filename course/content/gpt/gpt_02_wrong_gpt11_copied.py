import torch
import torch.nn.functional as F


def gpt_forward(ids, token_table, position_table, blocks, final_norm):
    lm_head = torch.nn.Parameter(token_table.clone())
    x = F.embedding(ids, token_table)
    x = x + position_table[torch.arange(ids.shape[1])]
    for b in blocks:
        x = b(x)
    return final_norm(x) @ lm_head.T
