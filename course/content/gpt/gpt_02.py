from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Part = Callable[[Tensor], Tensor]


def gpt_forward(
    ids: Tensor,
    token_table: Tensor,
    position_table: Tensor,
    blocks: Sequence[Part],
    final_norm: Part,
) -> Tensor:
    """
    zh: 整个 GPT：嵌入，一个块接一个块，最后归一化，再与每个词的向量做内积；输出与输入共用词表
    en: A whole GPT: embed, block after block, a last norm, then the product with every word's
    en: vector; output and input share the token table

    ids (B, T) int, token_table (V, D), position_table (L, D) → logits (B, T, V)
    """
    # >>>
    x = token_table[ids] + position_table[: ids.shape[1]]
    for block in blocks:
        x = block(x)
    x = final_norm(x)
    return x @ token_table.T
    # <<< raise NotImplementedError
