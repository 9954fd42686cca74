from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def evaluate(
    model: nn.Module,
    loss_fn: Callable[[nn.Module, Any], tuple[Tensor, int]],
    batches: Sequence[Any],
) -> float:
    """
    zh: 训练途中量一次：评估模式（不丢弃），不建计算图，全部词元的平均损失；量完回到训练模式。
    zh: loss_fn(model, batch) 交回 (损失之和, 词元个数)
    en: Measure in the middle of training: evaluation mode (nothing dropped), no graph, the mean
    en: loss over all tokens; then back to training mode. loss_fn(model, batch) returns (sum of
    en: losses, number of tokens)
    """
    # >>>
    model.eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for batch in batches:
            loss, n_tokens = loss_fn(model, batch)
            total += loss.item()
            count += n_tokens
    model.train()
    return total / count
    # <<< raise NotImplementedError
