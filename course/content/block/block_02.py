from collections.abc import Callable

from torch import Tensor

Part = Callable[[Tensor], Tensor]


def run_layers(x: Tensor, layers: list[tuple[Part, Part, Part, Part]]) -> Tensor:
    """
    zh: 一层接一层地走过 Pre-LN 的块；每层是 (norm_1, attention, norm_2, feed_forward)。有一处错
    en: Go through Pre-LN blocks one after another, each a tuple of parts. One fault is in here

    x (B, T, D) → (B, T, D)
    """
    for norm_1, attention, norm_2, feed_forward in layers:
        # >>>
        x = x + attention(norm_1(x))
        x = x + feed_forward(norm_2(x))
        # <<<
    return x
