"""归一化：层归一化、均方根归一化，手算一遍；三道。"""

from __future__ import annotations

import random
from typing import Any

import torch

from course.exercise import Exercise

SIZES = ((2, 3, 5, 1e-5), (4, 2, 7, 0.5), (3, 4, 6, 0.8))  # batch, length, width, ε


def tokens(random_: random.Random, case: int) -> dict[str, Any]:
    """Tokens away from zero; γ = 1 and β = 0 first, so that mean 0 and variance 1 can be seen; in
    the second case one token whose components are all alike."""
    batch, length, width, eps = SIZES[case]
    x = 2.0 * torch.randn(batch, length, width) + 1.5
    if case == 1:
        x[0, 1] = x[0, 1, 0]
    weight, bias = 1.0 + 0.5 * torch.rand(width), torch.randn(width)
    if case == 0:
        weight, bias = torch.ones(width), torch.zeros(width)
    return {"x": x, "weight": weight, "bias": bias, "eps": eps}


def tokens_without_bias(random_: random.Random, case: int) -> dict[str, Any]:
    """The same for RMS norm; in the second case one token that is all zero."""
    made = tokens(random_, case)
    if case == 1:
        made["x"][0, 1] = 0.0
    return {name: value for name, value in made.items() if name != "bias"}


def nothing(random_: random.Random, case: int) -> dict[str, Any]:
    """No inputs: the file holds answers."""
    return {}


EXERCISES = (
    Exercise(
        "norms.01", 2, ("layer_norm",), tokens, outputs=("normed",),
        forbidden=("layer_norm", "LayerNorm"), checkpoint=("week2-block",),
    ),
    Exercise(
        "norms.02", 2, ("rms_norm",), tokens_without_bias, outputs=("normed",),
        forbidden=("rms_norm", "RMSNorm"),
    ),
    Exercise(
        "norms.03", 2,
        ("variance", "layer_first", "layer_ten_times", "root_mean_square", "rms_first",
         "rms_shifted"),
        nothing, kind="predict", cases=1, tolerance=1e-3,
    ),
)  # fmt: skip
