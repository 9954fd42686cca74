import torch
from torch import Tensor


def pad_batch(sequences: list[list[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """
    zh: 长短不一的几段拼成方的一批：右边补 pad_id，补到最长的那段；目标是每个词元的下一个，
    zh: 没有下一个的位置（补齐的、每段最后一个）填 −100，损失不算它
    zh: pad_id 可能也是真的词元（常拿「文章结束」来补）：补没补，看长度，不看编号
    en: Sequences of unequal lengths as one rectangle: pad_id on the right, up to the longest. A
    en: token's target is the next one; where there is none (pads, the last of each sequence), −100,
    en: which the loss leaves out. pad_id may be a real token too (often «end of text»):
    en: tell pads by lengths, not by ids

    → ids (B, T), targets (B, T)
    """
    # >>>
    length = max(len(s) for s in sequences)
    ids = torch.full((len(sequences), length), pad_id)
    targets = torch.full((len(sequences), length), -100)
    for row, s in enumerate(sequences):
        ids[row, : len(s)] = torch.tensor(s)
        targets[row, : len(s) - 1] = torch.tensor(s[1:])
    return ids, targets
    # <<< raise NotImplementedError
