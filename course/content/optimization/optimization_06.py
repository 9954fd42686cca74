import torch
from torch import Tensor


def scaled_update(
    parameters: list[Tensor], gradients: list[Tensor], scale: float, max_norm: float, lr: float
) -> tuple[list[Tensor], bool]:
    """
    zh: 损失乘过 scale，所以这些梯度都大了 scale 倍。走一步 SGD：除回去；有 inf 或 NaN 就整步跳过，
    zh: 参数原样；再按全局长度裁剪；更新。交回 (参数, 跳过了没有)。这份代码有一处错，找出来改好
    en: The loss was multiplied by scale, so these gradients are scale times too large. One step of
    en: SGD: divide; if anything is inf or NaN, skip the whole step, parameters as they were; clip
    en: by the global norm; update. Return (parameters, was it skipped). One fault is in here
    """
    # >>>
    gradients = [gradient / scale for gradient in gradients]
    if not all(torch.isfinite(gradient).all() for gradient in gradients):
        return parameters, True
    norm = torch.sqrt(sum((gradient**2).sum() for gradient in gradients))
    factor = min(1.0, float(max_norm / norm))
    updated = [p - lr * factor * gradient for p, gradient in zip(parameters, gradients)]
    return updated, False
    # <<<
