from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor


def language_model_loss(model: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
    """
    zh: tokens 比模型要读的多一个：前 T 个是输入，后 T 个是标签。这份代码有一处错
    en: `tokens` has one more than the model reads: the first T are inputs, the last T labels.
    en: One fault is in here

    model (B, T) → logits (B, T, V); tokens (B, T + 1) → scalar tensor
    """
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    logits = model(inputs)
    # >>>
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    # <<<
    return loss
