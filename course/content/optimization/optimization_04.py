from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def accumulate(
    model_loss: Callable[[Any], tuple[Tensor, int]],
    micro_batches: Sequence[Any],
    parameters: list[Tensor],
) -> tuple[float, list[Tensor]]:
    """
    zh: 几个微批次合成一个大批：损失与梯度都是「全部词元的平均」，与一次算完整个大批相同。
    zh: model_loss(微批次) 交回 (这些词元的损失之和, 词元个数)；参数里可能还留着上一步的 .grad
    en: Several micro-batches as one large batch: loss and gradients are the mean over all tokens,
    en: the same as in one go. model_loss(micro_batch) returns (sum of the tokens' losses, number of
    en: tokens); the parameters may still hold the .grad of the step before

    L = Σₐ Sₐ / Σₐ nₐ     →  (L, [∂L/∂p for p in parameters])
    """
    # >>>
    for parameter in parameters:
        parameter.grad = None
    total, count = 0.0, 0
    for micro_batch in micro_batches:
        loss, n_tokens = model_loss(micro_batch)
        loss.backward()
        total += loss.item()
        count += n_tokens
    gradients = [parameter.grad / count for parameter in parameters]
    return total / count, gradients
    # <<< raise NotImplementedError
