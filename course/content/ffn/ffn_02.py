import torch
import torch.nn.functional as F
from torch import Tensor


def feed_forward(x: Tensor, w_up: Tensor, b_up: Tensor, w_down: Tensor, b_down: Tensor) -> Tensor:
    """
    zh: 前馈：每个词元各自变宽、过 GELU（精确的，F.gelu 就是）、再变窄；不加残差，那是块的事
    en: Feed-forward: every token alone goes wide, through GELU (exact, as F.gelu), narrow again;
    en: no residual here, that is the block's job

    x (B, T, D), w_up (F, D), b_up (F,), w_down (D, F), b_down (D,) → (B, T, D)
    """
    # >>>
    wide = x @ w_up.T + b_up
    hidden = F.gelu(wide)
    return hidden @ w_down.T + b_down
    # <<< raise NotImplementedError
