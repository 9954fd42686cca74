from collections.abc import Callable

from torch import Tensor

Part = Callable[[Tensor], Tensor]


def block(x: Tensor, norm_1: Part, attention: Part, norm_2: Part, feed_forward: Part) -> Tensor:
    """
    zh: Pre-LN 的块：先 x ← x + Attention(Norm₁(x))，再 x ← x + FFN(Norm₂(x))
    en: A Pre-LN block: x ← x + Attention(Norm₁(x)), then x ← x + FFN(Norm₂(x))

    zh: 四个零件都是 (B, T, D) → (B, T, D) 的函数，调用就行；不要改动传进来的 x
    en: The four parts are functions (B, T, D) → (B, T, D): call them; leave the given x unchanged
    """
    # >>>
    x = x + attention(norm_1(x))
    x = x + feed_forward(norm_2(x))
    return x
    # <<< raise NotImplementedError
