import torch
from torch import Tensor


def epoch(
    tokens: Tensor, starts: Tensor, order: Tensor, batch_size: int, block_size: int
) -> list[tuple[Tensor, Tensor]]:
    """
    zh: 一轮训练的全部批次：窗口按 order 打乱，每批 batch_size 个，最后一批可以少几个。
    zh: 这份代码有一处错，找出来改好
    en: All batches of an epoch: windows in the shuffled `order`, batch_size each, fewer in the
    en: last. One fault is in here

    tokens (N,), starts (W,), order: a permutation of W → [(x, y), …], both (B, block_size)
    """
    shuffled = starts[order]
    steps = torch.arange(block_size)
    batches = []
    for first in range(0, len(shuffled), batch_size):
        # >>>
        places = shuffled[first : first + batch_size, None] + steps
        batches.append((tokens[places], tokens[places + 1]))
        # <<<
    return batches
