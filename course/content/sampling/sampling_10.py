import torch
from torch import Tensor


def next_probabilities(
    logits: Tensor, seen: list[int], penalty: float, temperature: float, p: float
) -> Tensor:
    """
    zh: 从分数到下一个词元的概率：重复惩罚 → 温度 → top-p → softmax。这份代码有一处错，找出来改好
    en: From scores to the next token's probabilities: repetition penalty → temperature → top-p →
    en: softmax. One fault is in here

    logits (V,), seen: ids → (V,), the sum is 1
    """
    scores = logits.clone()
    said = torch.tensor(sorted(set(seen)))
    scores[said] = torch.where(scores[said] > 0, scores[said] / penalty, scores[said] * penalty)
    # >>>
    scores = scores / temperature
    ordered, order = scores.sort(descending=True)
    chances = torch.softmax(ordered, dim=-1)
    before = chances.cumsum(dim=-1) - chances
    scores[order[before >= p]] = float("-inf")
    return torch.softmax(scores, dim=-1)
    # <<<
