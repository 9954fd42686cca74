"""注意力：从打分到因果、补齐；八道。"""

from __future__ import annotations

import random
from typing import Any

import torch

from course.exercise import Exercise

# every dimension is different, so that a swapped axis cannot hide
SIZES = ((2, 3, 5, 4), (1, 4, 6, 7), (3, 5, 2, 8))  # batch, queries, keys, width


def query_key(random_: random.Random, case: int) -> dict[str, Any]:
    """q (B, T, d) and k (B, S, d)."""
    batch, queries, keys, width = SIZES[case]
    return {"q": torch.randn(batch, queries, width), "k": torch.randn(batch, keys, width)}


def query_key_value(random_: random.Random, case: int) -> dict[str, Any]:
    """q, k, and v (B, S, e): values may be wider than keys."""
    made = query_key(random_, case)
    batch, keys, width = made["k"].shape
    return {**made, "v": torch.randn(batch, keys, width + 3)}


def raw_scores(random_: random.Random, case: int) -> dict[str, Any]:
    """Scores as they come; the last case is large, with one row far below the others. All are
    exact in float32 too: whoever computes in it is right."""
    batch, queries, keys, _ = SIZES[case]
    scores = (3 * torch.randn(batch, queries, keys) * 256).round() / 256
    if case == 2:
        scores = scores + 2000.0
        scores[:, 0] -= 5000.0
    return {"scores": scores}


def mask_sizes(random_: random.Random, case: int) -> dict[str, Any]:
    """As many queries as keys, then fewer: the past is in the cache."""
    return dict(zip(("n_queries", "n_keys"), ((4, 4), (3, 7), (1, 5))[case], strict=True))


def scores_and_mask(random_: random.Random, case: int) -> dict[str, Any]:
    """Scores with a causal mask over a past of two keys."""
    batch, queries, _, _ = SIZES[case]
    keys = queries + 2
    mask = torch.ones(queries, keys, dtype=torch.bool).tril(2)
    return {"scores": 2 * torch.randn(batch, queries, keys) - 1.0, "mask": mask}


def self_attention(random_: random.Random, case: int) -> dict[str, Any]:
    """q, k, v of one sequence: as many queries as keys."""
    batch, queries, _, width = SIZES[case]
    q, k = torch.randn(2, batch, queries, width)
    return {"q": q, "k": k, "v": torch.randn(batch, queries, width + 3)}


def padded_batch(random_: random.Random, case: int) -> dict[str, Any]:
    """Left-padded rows: `real` (B, T) says which tokens are real; the first query may see none."""
    batch, length = ((2, 5), (3, 4), (4, 6))[case]
    pads = [(case + row) % (length - 1) for row in range(batch)]
    pads[0] = 2
    real = torch.arange(length)[None] >= torch.tensor(pads)[:, None]
    return {"scores": 2 * torch.randn(batch, length, length), "real": real}


def nothing(random_: random.Random, case: int) -> dict[str, Any]:
    """No inputs: the file holds answers."""
    return {}


EXERCISES = (
    Exercise("attention.01", 1, ("attention_scores",), query_key, outputs=("scores",)),
    Exercise(
        "attention.02", 1, ("softmax",), raw_scores, outputs=("weights",),
        forbidden=("softmax", "log_softmax", "logsumexp"),
    ),
    Exercise(
        "attention.03", 1, ("attention",), query_key_value,
        outputs=("scores", "weights", "output"), forbidden=("scaled_dot_product_attention",),
    ),
    Exercise("attention.04", 1, ("causal_mask",), mask_sizes, outputs=("mask",)),
    Exercise("attention.05", 1, ("masked_weights",), scores_and_mask, outputs=("weights",)),
    Exercise(
        "attention.06", 1,
        ("rows_sum", "visible", "first_weight", "last_weight", "hidden_weight"),
        nothing, kind="predict", cases=1,
    ),
    Exercise(
        "attention.07", 1, ("causal_attention",), self_attention, kind="repair",
        outputs=("weights", "output"), forbidden=("scaled_dot_product_attention",),
        starts_with="ATTN-06", checkpoint=("week1-attention",),
    ),
    Exercise("attention.08", 1, ("padded_weights",), padded_batch, outputs=("weights",)),
)  # fmt: skip
