"""前馈：激活、变宽变窄、门控，数参数；四道。"""

from __future__ import annotations

import random
from typing import Any

import torch

from course.exercise import Exercise

SIZES = ((2, 3, 4, 7), (3, 4, 5, 9), (1, 5, 6, 8))  # batch, length, width, inner width


def activations(random_: random.Random, case: int) -> dict[str, Any]:
    """Numbers of all sizes; in the second case where the approximations are worst."""
    batch, length, _, inner = SIZES[case]
    x = 1.5 * torch.randn(batch, length, inner)
    if case == 1:
        x = -1.6 - 1.2 * torch.rand(batch, length, inner)
    return {"x": x}


def with_biases(random_: random.Random, case: int) -> dict[str, Any]:
    """x and two layers; in the second case the biases push everything to where GELU is small."""
    batch, length, width, inner = SIZES[case]
    scale = 0.1 if case == 1 else 1.5
    made = {
        "x": torch.randn(batch, length, width),
        "w_up": scale * torch.randn(inner, width) / width**0.5,
        "b_up": torch.randn(inner),
        "w_down": torch.randn(width, inner) / inner**0.5,
        "b_down": torch.randn(width),
    }
    if case == 1:
        made["b_up"] = -2.2 - 0.3 * torch.rand(inner)
        made["b_down"] = 0.01 * torch.randn(width)
    return made


def gated(random_: random.Random, case: int) -> dict[str, Any]:
    """x and three matrices."""
    batch, length, width, inner = SIZES[case]
    return {
        "x": torch.randn(batch, length, width),
        "w_gate": 1.5 * torch.randn(inner, width) / width**0.5,
        "w_up": 1.5 * torch.randn(inner, width) / width**0.5,
        "w_down": torch.randn(width, inner) / inner**0.5,
    }


def nothing(random_: random.Random, case: int) -> dict[str, Any]:
    """No inputs: the file holds answers."""
    return {}


EXERCISES = (
    Exercise(
        "ffn.01", 2, ("gelu",), activations, outputs=("activated",), forbidden=("gelu", "GELU")
    ),
    Exercise(
        "ffn.02", 2, ("feed_forward",), with_biases, outputs=("output",),
        checkpoint=("week2-block",),
    ),
    Exercise("ffn.03", 2, ("swiglu",), gated, outputs=("output",)),
    Exercise(
        "ffn.04", 2,
        ("inner_width", "parameters", "times_attention", "gated_width", "gated_parameters"),
        nothing, kind="predict", cases=1, tolerance=1e-6,
    ),
)  # fmt: skip
