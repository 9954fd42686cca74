import torch
from torch import Tensor


def quantized_linear(x: Tensor, q: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """
    zh: 权重存成 int8 的线性层：y = xŴᵀ + b，Ŵ 的第 n 行是 scale[n]·q[n]；bias 可以没有
    en: A linear layer whose weights are int8: y = xŴᵀ + b; row n of Ŵ is scale[n]·q[n]; there may
    en: be no bias

    x (B, K), q (N, K) int8, scale (N,), bias (N,) or None → (B, N)
    """
    # >>>
    output = x @ q.to(x.dtype).T
    output = output * scale
    return output if bias is None else output + bias
    # <<< raise NotImplementedError
