import torch
from torch import Tensor


def batch(tokens: Tensor, starts: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    """
    zh: 从每个起点取一个窗口：输入 x，与错开一位的目标 y（第 i 个输入要猜的就是第 i 个目标）
    en: A window from each start: inputs x, and targets y one place further (input i must predict
    en: target i)

    tokens (N,), starts (B,) → x (B, block_size), y (B, block_size)
    """
    # >>>
    x = torch.stack([tokens[start : start + block_size] for start in starts.tolist()])
    y = torch.stack([tokens[start + 1 : start + block_size + 1] for start in starts.tolist()])
    return x, y
    # <<< raise NotImplementedError
