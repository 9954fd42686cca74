import torch
from torch import Tensor


def group_quantize(w: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """
    zh: 一行里每 group 个相邻的权重共用一把尺子，四比特：m 是组里绝对值最大的数，带着符号，
    zh: s = m / −8（m 恰好落在 −8 上），q = clamp(round(w / s), −8, 7)。全零的组 q 也是零
    en: Every `group` neighbours in a row share a ruler, 4 bits: m is the group's number of largest
    en: absolute value, with its sign; s = m / −8 (so m is exactly −8), q = clamp(round(w / s),
    en: −8, 7). A group of zeros has codes of zero

    w (N, K), K a multiple of group → q (N, K) int8, s (N, K/group)
    """
    # >>>
    rows, columns = w.shape
    groups = w.reshape(rows, columns // group, group)
    where = groups.abs().argmax(dim=-1, keepdim=True)
    scale = groups.gather(-1, where) / -8
    step = torch.where(scale == 0, 1.0, scale)
    codes = torch.round(groups / step).clamp(-8, 7)
    return codes.to(torch.int8).reshape(rows, columns), scale.squeeze(-1)
    # <<< raise NotImplementedError
