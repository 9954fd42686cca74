def gpt_forward(ids, token_table, position_table, blocks, final_norm):
    x = token_table[ids] + position_table[: ids.shape[1]]
    for block in blocks:
        out = block(x)
    return final_norm(out) @ token_table.T
