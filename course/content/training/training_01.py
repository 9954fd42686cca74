from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def train_step(
    model: nn.Module,
    loss_fn: Callable[[nn.Module, Any], Tensor],
    batch: Any,
    optimizer: Any,
    rate: float,
    max_norm: float,
) -> float:
    """
    zh: 训练一步：训练模式；学习率写进每一组；清掉旧的梯度；前向、反向；按全局长度裁剪到 max_norm；
    zh: 更新。交回这一批的损失，是 Python 的数，不带计算图。
    zh: optimizer 用起来与 torch 的一样：param_groups、zero_grad()、step()
    en: One step of training: training mode; the rate into every group; old gradients away; forward,
    en: backward; clip to max_norm by the global norm; update. Return the batch's loss, a Python
    en: number without a graph. The optimizer is used like those of torch: param_groups,
    en: zero_grad(), step()
    """
    # >>>
    model.train()
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    loss = loss_fn(model, batch)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()
    return loss.item()
    # <<< raise NotImplementedError
