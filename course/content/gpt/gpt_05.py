import torch
from torch import Tensor


def next_token_loss(logits: Tensor, ids: Tensor) -> Tensor:
    """
    zh: 位置 t 的分数要猜第 t + 1 个词元：错开一位，再取交叉熵的平均；最后一个位置没有答案，不算
    en: The logits of position t predict token t + 1: shift by one, then the mean cross-entropy; the
    en: last position has no answer and does not count

    logits (B, T, V), ids (B, T) → scalar tensor
    """
    # >>>
    predictions = logits[:, :-1]
    targets = ids[:, 1:]
    log_probabilities = torch.log_softmax(predictions, dim=-1)
    picked = log_probabilities.gather(-1, targets[..., None])[..., 0]
    return -picked.mean()
    # <<< raise NotImplementedError
