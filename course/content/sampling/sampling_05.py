import torch
from torch import Tensor


def repetition_penalty(logits: Tensor, seen_ids: list[list[int]], penalty: float) -> Tensor:
    """
    zh: 说过的词元降一档：正的分数除以 penalty，其余的乘以它；说过几次都只罚一次
    en: Lower the tokens already seen: positive scores are divided by `penalty`, the others
    en: multiplied; once, however often a token was seen

    logits (B, V), seen_ids: one list of ids per row, penalty > 1 → (B, V)
    """
    # >>>
    result = logits.clone()
    for row, ids in enumerate(seen_ids):
        for token in set(ids):
            score = logits[row, token]
            result[row, token] = score / penalty if score > 0 else score * penalty
    return result
    # <<< raise NotImplementedError
