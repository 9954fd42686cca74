import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def train(
    model: nn.Module,
    loss_fn: Callable[[nn.Module, Any], Tensor],
    batches: Sequence[Any],
    steps: int,
    optimizer: Any,
    schedule: Callable[[int], float],
    max_norm: float,
) -> list[float]:
    """
    zh: 训练 steps 步。第 s 步（从 0 数起）用第 s 批，用完了从头再来；学习率是 schedule(s)；
    zh: 损失不是有限数（NaN、inf）就跳过这一步的更新，步数照算。交回每一步的损失，都是 Python 的数
    en: Train for `steps` steps. Step s (from 0) uses batch s, starting over when they are used up;
    en: the rate is schedule(s); a loss that is not finite (NaN, inf) skips the update of its step,
    en: which still counts. Return every step's loss, as Python numbers
    """
    # >>>
    model.train()
    losses = []
    for step in range(steps):
        batch = batches[step % len(batches)]
        for group in optimizer.param_groups:
            group["lr"] = schedule(step)
        optimizer.zero_grad()
        loss = loss_fn(model, batch)
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            continue
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()
    return losses
    # <<< raise NotImplementedError
