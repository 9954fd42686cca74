"""多头：拆、合、各看各的；分组查询；六道。"""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import torch

from course.exercise import Exercise

# batch, length, heads, width of a head: all different, and the whole width too
SIZES = ((2, 5, 3, 4), (3, 7, 2, 5), (1, 6, 4, 3))


def tokens(random_: random.Random, case: int) -> dict[str, Any]:
    """x (B, T, D) and how many heads to make of it."""
    batch, length, n_heads, width = SIZES[case]
    return {"x": torch.randn(batch, length, n_heads * width), "n_heads": n_heads}


def heads(random_: random.Random, case: int) -> dict[str, Any]:
    """x (B, H, T, d), as it comes out of the attention."""
    batch, length, n_heads, width = SIZES[case]
    return {"x": torch.randn(batch, n_heads, length, width)}


def projections(random_: random.Random, case: int) -> dict[str, Any]:
    """x and four weights as nn.Linear keeps them; scores of a few units."""
    made = tokens(random_, case)
    width = made["x"].shape[-1]
    names = ("w_q", "w_k", "w_v", "w_o")
    weights = {name: 1.5 * torch.randn(width, width) / width**0.5 for name in names}
    return {"x": made["x"], **weights, "n_heads": made["n_heads"]}


def grouped(random_: random.Random, case: int) -> dict[str, Any]:
    """The same with fewer heads for keys and values."""
    batch, length, n_kv_heads, repeats, width = ((2, 5, 2, 3, 4), (1, 4, 3, 2, 5))[case]
    whole, narrow = n_kv_heads * repeats * width, n_kv_heads * width
    shapes = {"w_q": whole, "w_k": narrow, "w_v": narrow, "w_o": whole}
    weights = {name: 1.5 * torch.randn(out, whole) / whole**0.5 for name, out in shapes.items()}
    x = torch.randn(batch, length, whole)
    return {"x": x, **weights, "n_heads": n_kv_heads * repeats, "n_kv_heads": n_kv_heads}


def key_value_heads(random_: random.Random, case: int) -> dict[str, Any]:
    """x (B, G, T, d) and how often each head is copied."""
    batch, length, n_kv_heads, width = SIZES[case]
    return {"x": torch.randn(batch, n_kv_heads, length, width), "n_repeats": n_kv_heads + 2}


def and_with_another_end(
    answer: SimpleNamespace, inputs: dict[str, Any], name: str
) -> dict[str, Any]:
    """Run twice, the second time with another last token: earlier outputs must not change."""
    changed = {**inputs, "x": inputs["x"].clone()}
    changed["x"][:, -1] += 1.0
    function = getattr(answer, name)
    return {"output": function(**inputs), "after_change": function(**changed)}


def attend(answer: SimpleNamespace, inputs: dict[str, Any]) -> dict[str, Any]:
    """Outputs of two texts that differ in their last token."""
    return and_with_another_end(answer, inputs, "multi_head_attention")


def attend_grouped(answer: SimpleNamespace, inputs: dict[str, Any]) -> dict[str, Any]:
    """The same for grouped queries."""
    return and_with_another_end(answer, inputs, "grouped_query_attention")


def nothing(random_: random.Random, case: int) -> dict[str, Any]:
    """No inputs: the file holds answers."""
    return {}


READY_MADE = ("scaled_dot_product_attention", "MultiheadAttention", "multi_head_attention_forward")

EXERCISES = (
    Exercise("heads.01", 1, ("split_heads",), tokens, outputs=("heads",)),
    Exercise("heads.02", 1, ("merge_heads",), heads, outputs=("merged",)),
    Exercise(
        "heads.03", 1, ("multi_head_attention",), projections, attend, cases=2,
        forbidden=READY_MADE, checkpoint=("week1-attention",),
    ),
    Exercise("heads.04", 2, ("repeat_kv",), key_value_heads, outputs=("repeated",)),
    Exercise(
        "heads.05", 2,
        ("head_width", "parameters", "parameters_16_heads", "parameters_grouped", "cached_grouped"),
        nothing, kind="predict", cases=1,
    ),
    Exercise(
        "heads.06", 2, ("grouped_query_attention",), grouped, attend_grouped, kind="repair",
        cases=2, forbidden=READY_MADE, starts_with="HEAD-16",
    ),
)  # fmt: skip
