import copy
from typing import Any

import torch
from torch import nn


def save_state(model: nn.Module, optimizer: Any, step: int, position: int) -> dict[str, Any]:
    """
    zh: 记下接着训练所需的一切：权重（含 buffer）、优化器的状态、步数、数据读到哪里、随机数的状态。
    zh: 之后训练还会往下走，记下的不能跟着变
    en: Keep all that going on needs: weights (with buffers), the optimizer's state, the step, where
    en: in the data we are, the random state. Training goes on afterwards: what is kept must not
    en: change
    """
    # >>>
    return {
        "model": copy.deepcopy(model.state_dict()),
        "optimizer": copy.deepcopy(optimizer.state_dict()),
        "step": step,
        "position": position,
        "random": torch.get_rng_state(),
    }
    # <<< raise NotImplementedError


def load_state(state: dict[str, Any], model: nn.Module, optimizer: Any) -> tuple[int, int]:
    """
    zh: 放回新建的模型与优化器，交回 (step, position)：接着走的每一步都与没停过一样
    en: Put it back into a new model and optimizer and return (step, position): every step from here
    en: on is the same as if nothing had happened
    """
    # >>>
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["random"])
    return state["step"], state["position"]
    # <<< raise NotImplementedError
