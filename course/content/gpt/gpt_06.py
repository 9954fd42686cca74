import torch
from torch import Tensor


def masked_loss(logits: Tensor, targets: Tensor, ignore: int) -> Tensor:
    """
    zh: 标签已经错开；标签等于 ignore 的位置（补齐、用户的话）不进分子，也不进分母
    en: Labels are shifted already; positions whose label is `ignore` (pads, the user's words) count
    en: neither in the numerator nor in the denominator

    zh: ignore 可以是 −100，也可以是补齐词元的编号
    en: `ignore` may be −100 or the id of the padding token

    logits (B, T, V), targets (B, T) → scalar tensor
    """
    # >>>
    counted = targets != ignore
    log_probabilities = torch.log_softmax(logits, dim=-1)
    somewhere = targets.clamp(min=0)
    picked = log_probabilities.gather(-1, somewhere[..., None])[..., 0]
    return -(picked * counted).sum() / counted.sum()
    # <<< raise NotImplementedError
