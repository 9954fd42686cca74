from torch import Tensor


def windows(tokens: Tensor, block_size: int) -> list[int]:
    """
    zh: 一轮里各个窗口的起点：一个窗口要 block_size 个输入，外加一个，作最后的目标
    zh: 从 0 起每隔 block_size 一个；末尾不够一整个时，把最后一个窗口往回推到恰好到头，一道题也不漏
    en: The starts of an epoch's windows: a window needs block_size inputs and one more token, its
    en: last target. From 0 in steps of block_size; where the rest is too short, the last window is
    en: pushed back so that it ends with the text: no target is left out

    tokens (N,), N > block_size → starts, ascending
    """
    # >>>
    last = len(tokens) - block_size - 1
    starts = list(range(0, last + 1, block_size))
    if starts[-1] != last:
        starts.append(last)
    return starts
    # <<< raise NotImplementedError
