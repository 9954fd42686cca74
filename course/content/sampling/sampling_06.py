import torch
from torch import Tensor


def draw(probabilities: Tensor, u: Tensor) -> Tensor:
    """
    zh: 按概率抽：把 [0, 1) 按概率分给各个词元，u 落在谁那一段就是谁。概率是 0 的永远抽不到；
    zh: 舍入使总和略小于 1 时也不能落到外面
    en: Draw by the probabilities: [0, 1) is shared out among the tokens, u falls into one's share.
    en: Probability 0 is never drawn; a sum just under 1, from rounding, must not lead outside

    probabilities (B, V), u (B,) in [0, 1) → (B,) ids
    """
    # >>>
    cumulative = probabilities.cumsum(dim=-1)
    point = u[:, None] * cumulative[:, -1:]
    return (cumulative <= point).sum(dim=-1)
    # <<< raise NotImplementedError
