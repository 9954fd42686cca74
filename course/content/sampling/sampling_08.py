import math
from collections.abc import Callable

from torch import Tensor


def beam_search(
    next_log_probs: Callable[[list[int]], Tensor], start: list[int], n_steps: int, width: int
) -> list[tuple[list[int], float]]:
    """
    zh: 束搜索：每步把每条路接上每个词元，总对数概率最高的 width 条留下
    zh: 一条路是 (词元列表，总对数概率)，列表从 start 开头；走 n_steps 步，最好的排在最前
    en: Beam search: each step extends every path by every token and keeps the `width` best totals.
    en: A path is (ids, total log-probability), ids begin with `start`; n_steps steps, best first

    next_log_probs(ids) → (V,)
    """
    # >>>
    beams = [(list(start), 0.0)]
    for _ in range(n_steps):
        candidates = []
        for ids, total in beams:
            for token, value in enumerate(next_log_probs(ids).tolist()):
                candidates.append((ids + [token], total + value))
        candidates.sort(key=lambda beam: beam[1], reverse=True)
        beams = candidates[:width]
    return beams
    # <<< raise NotImplementedError
