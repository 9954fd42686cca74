import torch
from torch import Tensor


def pack(documents: list[list[int]], end_id: int) -> tuple[list[int], list[int], list[int]]:
    """
    zh: 几篇文档首尾相接成一行，每篇后面加一个 end_id，它算这一篇的
    zh: 同时记下每个词元属于第几篇、是那一篇的第几个，都从 0 数起
    en: Documents one after another in one row, each followed by an end_id, which belongs to it;
    en: note for every token which document it is of and which token of it, both counted from 0

    → ids, document numbers, positions
    """
    # >>>
    ids, owners, positions = [], [], []
    for number, document in enumerate(documents):
        text = [*document, end_id]
        ids += text
        owners += [number] * len(text)
        positions += range(len(text))
    return ids, owners, positions
    # <<< raise NotImplementedError


def document_mask(owners: Tensor) -> Tensor:
    """
    zh: 谁看得见谁：同一篇的、不在自己之后的（含自己）；True = 看得见
    en: Who sees whom: the same document, not later than oneself (oneself included); True = visible

    owners (N,) → (N, N) bool, rows are queries
    """
    # >>>
    same = owners[:, None] == owners[None, :]
    return same.tril()
    # <<< raise NotImplementedError
