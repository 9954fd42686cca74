import torch
import torch.nn.functional as F
from torch import Tensor


def swiglu(x: Tensor, w_gate: Tensor, w_up: Tensor, w_down: Tensor) -> Tensor:
    """
    zh: 门控前馈：y = W_down·(SiLU(W_gate·x) ⊙ W_up·x)，SiLU(z) = z·σ(z)；没有偏置，不加残差
    en: Gated feed-forward: y = W_down·(SiLU(W_gate·x) ⊙ W_up·x), SiLU(z) = z·σ(z); no biases,
    en: no residual

    x (B, T, D), w_gate, w_up (F, D), w_down (D, F) → (B, T, D)
    """
    # >>>
    gate = x @ w_gate.T
    up = x @ w_up.T
    hidden = F.silu(gate) * up
    return hidden @ w_down.T
    # <<< raise NotImplementedError
