import torch
from torch import Tensor


def adamw_step(
    parameter: Tensor,
    gradient: Tensor,
    m: Tensor,
    v: Tensor,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """
    zh: AdamW 走一步，step 从 1 数起；交回新的 (parameter, m, v)，传进来的不要改。
    en: One step of AdamW; step counts from 1. Return the new (parameter, m, v), and do not change
    en: what came in.

    m ← β₁m + (1 − β₁)g            m̂ = m / (1 − β₁ᵗ)
    v ← β₂v + (1 − β₂)g²           v̂ = v / (1 − β₂ᵗ)
    θ ← (1 − ηλ)θ − η · m̂ / (√v̂ + ε)

    t = step, η = lr, λ = weight_decay
    """
    # >>>
    m = beta1 * m + (1 - beta1) * gradient
    v = beta2 * v + (1 - beta2) * gradient**2
    m_hat = m / (1 - beta1**step)
    v_hat = v / (1 - beta2**step)
    parameter = parameter * (1 - lr * weight_decay)
    parameter = parameter - lr * m_hat / (v_hat.sqrt() + eps)
    return parameter, m, v
    # <<< raise NotImplementedError
