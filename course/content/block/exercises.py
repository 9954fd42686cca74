"""块：残差与归一化怎样接；三道。"""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from course.exercise import Exercise

Part = Callable[[Tensor], Tensor]
SIZES = ((2, 3, 5), (3, 4, 6))  # batch, length, width


def new_norm(width: int) -> Part:
    """A layer norm with parameters of its own."""
    weight, bias = 0.5 + torch.rand(width), torch.randn(width)

    def norm(x: Tensor) -> Tensor:
        centred = x - x.mean(dim=-1, keepdim=True)
        variance = centred.square().mean(dim=-1, keepdim=True)
        return centred / (variance + 1e-5).sqrt() * weight + bias

    return norm


def new_attention(width: int) -> Part:
    """Mixes each token with those before it."""
    matrix = torch.randn(width, width) / width**0.5

    def attention(x: Tensor) -> Tensor:
        seen = torch.arange(1.0, x.shape[1] + 1)[:, None]
        return torch.tanh((x @ matrix).cumsum(dim=1) / seen) * 2

    return attention


def new_feed_forward(width: int) -> Part:
    """Works on each token alone."""
    up, down = torch.randn(width, 2 * width), torch.randn(2 * width, width)
    return lambda x: torch.relu(x @ up / width**0.5) @ down / width**0.5


def nothing_added(x: Tensor) -> Tensor:
    """A branch that is switched off."""
    return torch.zeros_like(x)


def one_block(random_: random.Random, case: int) -> dict[str, Any]:
    """x and the four parts of a block."""
    batch, length, width = SIZES[case]
    return {
        "x": 2.0 * torch.randn(batch, length, width) + 1.0,
        "norm_1": new_norm(width),
        "attention": new_attention(width),
        "norm_2": new_norm(width),
        "feed_forward": new_feed_forward(width),
    }


def three_blocks(random_: random.Random, case: int) -> dict[str, Any]:
    """x and the parts of three blocks."""
    made = [one_block(random_, case) for _ in range(3)]
    return {"x": made[0]["x"], "layers": [tuple(parts.values())[1:] for parts in made]}


def run_block(answer: SimpleNamespace, inputs: dict[str, Any]) -> dict[str, Any]:
    """The output, and the output with both branches switched off: it must be x itself."""
    x, norm_1, attention, norm_2, feed_forward = inputs.values()
    before = x.clone()
    off = answer.block(x, norm_1, nothing_added, norm_2, nothing_added)
    output = answer.block(x, norm_1, attention, norm_2, feed_forward)
    return {"x": before, "branches_off": off, "output": output}


def run_three(answer: SimpleNamespace, inputs: dict[str, Any]) -> dict[str, Any]:
    """The same for three blocks."""
    x, layers = inputs.values()
    before = x.clone()
    off = [(norm_1, nothing_added, norm_2, nothing_added) for norm_1, _, norm_2, _ in layers]
    switched_off = answer.run_layers(x, off)
    return {"x": before, "branches_off": switched_off, "output": answer.run_layers(x, layers)}


def nothing(random_: random.Random, case: int) -> dict[str, Any]:
    """No inputs: the file holds answers."""
    return {}


EXERCISES = (
    Exercise("block.01", 2, ("block",), one_block, run_block, cases=2, checkpoint=("week2-block",)),
    Exercise(
        "block.02", 2, ("run_layers",), three_blocks, run_three, kind="repair", cases=2,
        starts_with="BLOCK-05",
    ),
    Exercise(
        "block.03", 2, ("pre_variance", "pre_deviation", "scaled_variance", "post_variance"),
        nothing, kind="predict", cases=1,
    ),
)  # fmt: skip
