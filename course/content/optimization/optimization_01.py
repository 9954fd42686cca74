import torch
from torch import Tensor


def clip_gradients(gradients: list[Tensor], max_norm: float) -> tuple[list[Tensor], Tensor]:
    """
    zh: 全部梯度接成一个长向量，长度超过 max_norm 就整体缩到 max_norm，方向不变；没超过就不动。
    zh: 交回新的梯度与裁剪之前的长度；不要改动传进来的张量
    en: All gradients as one long vector: if it is longer than max_norm, shrink all of it to
    en: max_norm, its direction unchanged; else leave it. Return new gradients and the length
    en: before clipping; do not change the tensors that came in

    ‖g‖ = √(Σ over all tensors and entries g²),   g ← g · min(1, max_norm / ‖g‖)
    """
    # >>>
    squares = [(gradient**2).sum() for gradient in gradients]
    norm = torch.sqrt(sum(squares))
    factor = 1.0
    if norm > max_norm:
        factor = max_norm / norm
    return [gradient * factor for gradient in gradients], norm
    # <<< raise NotImplementedError
