import torch
from torch import Tensor


def apply_temperature(logits: Tensor, temperature: float) -> Tensor:
    """
    zh: 分数除以温度；温度 0 就是贪心：每行只留最高分，其余记作 −∞
    en: Divide the scores by the temperature; 0 is greedy: each row keeps its best, the rest are −∞

    logits (B, V), temperature ≥ 0 → (B, V)
    """
    # >>>
    if temperature == 0:
        best = logits.max(dim=-1, keepdim=True).values
        return logits.masked_fill(logits < best, float("-inf"))
    return logits / temperature
    # <<< raise NotImplementedError
