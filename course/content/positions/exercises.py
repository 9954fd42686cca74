"""位置：查表相加、正弦、旋转；五道。"""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import torch

from course.exercise import Exercise


def ids_and_tables(random_: random.Random, case: int) -> dict[str, Any]:
    """ids (B, T), tables (V, D) and (L, D); more positions than tokens, so that no index fails.
    The first texts repeat one token: all that tells it apart is its position."""
    batch, length, vocabulary, width = ((2, 5, 7, 4), (3, 4, 9, 6), (4, 6, 8, 5))[case]
    ids = torch.randint(vocabulary, (batch, length))
    return {
        "ids": ids[:, :1].repeat(1, length) if case == 0 else ids,
        "token_table": torch.randn(vocabulary, width),
        "position_table": torch.randn(vocabulary + 4, width),
    }


def table_sizes(random_: random.Random, case: int) -> dict[str, Any]:
    """How many positions, how wide."""
    return dict(zip(("length", "dim"), ((7, 6), (5, 8), (9, 4))[case], strict=True))


def angle_sizes(random_: random.Random, case: int) -> dict[str, Any]:
    """How many positions, how wide a head, which base."""
    sizes = ((7, 6, 10000.0), (5, 8, 500.0), (9, 4, 2000.0))[case]
    return dict(zip(("length", "head_dim", "base"), sizes, strict=True))


def cos_sin(first: int, last: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin (T, d/2) of the positions first … last − 1."""
    frequencies = 30.0 ** (-torch.arange(0, width, 2) / width)
    angles = torch.outer(torch.arange(float(first), float(last)), frequencies)
    return angles.cos(), angles.sin()


def to_turn(random_: random.Random, case: int) -> dict[str, Any]:
    """x (B, H, T, d) and the angles of its positions, which need not begin at 0."""
    batch, n_heads, length, width = ((2, 3, 5, 8), (1, 2, 4, 6), (3, 4, 7, 10))[case]
    cos, sin = cos_sin(case, case + length, width)
    return {"x": torch.randn(batch, n_heads, length, width), "cos": cos, "sin": sin}


def queries_and_keys(random_: random.Random, case: int) -> dict[str, Any]:
    """A whole text, then one whose first tokens are in the cache; and both moved on."""
    batch, n_heads, queries, keys, width = ((2, 3, 5, 5, 8), (1, 2, 3, 7, 6))[case]
    cos, sin = cos_sin(0, keys, width)
    moved_cos, moved_sin = cos_sin(4, keys + 4, width)
    return {
        "q": torch.randn(batch, n_heads, queries, width),
        "k": torch.randn(batch, n_heads, keys, width),
        "cos": cos,
        "sin": sin,
        "moved_cos": moved_cos,
        "moved_sin": moved_sin,
    }


def score_twice(answer: SimpleNamespace, inputs: dict[str, Any]) -> dict[str, Any]:
    """Scores, and scores of the same text four positions further on: they must be equal."""
    q, k, cos, sin, moved_cos, moved_sin = inputs.values()
    return {
        "scores": answer.rotary_scores(q, k, cos, sin),
        "moved_by_4": answer.rotary_scores(q, k, moved_cos, moved_sin),
    }


EXERCISES = (
    Exercise("positions.01", 2, ("embed",), ids_and_tables, outputs=("embedded",)),
    Exercise("positions.02", 2, ("sinusoidal",), table_sizes, outputs=("table",)),
    Exercise("positions.03", 2, ("rope_angles",), angle_sizes, outputs=("angles",)),
    Exercise(
        "positions.04", 2, ("rotate",), to_turn, outputs=("turned",),
        checkpoint=("week2-block",),
    ),
    Exercise(
        "positions.05", 2, ("rotary_scores",), queries_and_keys, score_twice, kind="repair",
        cases=2, starts_with="ROPE-20",
    ),
)  # fmt: skip
