"""LoRA：前向、初始化、合并、谁在训练；六道。"""

from __future__ import annotations

import math
import random
from types import SimpleNamespace
from typing import Any

import torch

from course.exercise import Exercise

SIZES = ((2, 3, 5, 7, 4), (1, 4, 6, 3, 2), (3, 2, 8, 5, 3))  # batch, length, in, out, rank


def layer(random_: random.Random, case: int, square: bool = False) -> dict[str, Any]:
    """w (d_out, d_in), a (d_in, r), b (r, d_out), and an alpha that no other formula hits."""
    _, _, d_in, d_out, r = SIZES[case]
    d_out = d_in if square else d_out
    return {
        "w": torch.randn(d_out, d_in),
        "a": torch.randn(d_in, r),
        "b": torch.randn(r, d_out),
        "alpha": r * random_.uniform(2.2, 2.9),
        "r": r,
    }


def forward(random_: random.Random, case: int) -> dict[str, Any]:
    """A layer, and x (B, T, d_in)."""
    batch, length, d_in, _, _ = SIZES[case]
    return {"x": torch.randn(batch, length, d_in), **layer(random_, case)}


def to_merge(random_: random.Random, case: int) -> dict[str, Any]:
    """A square layer first: there a forgotten transposition raises no error."""
    return layer(random_, case, square=case == 0)


def sizes(random_: random.Random, case: int) -> dict[str, Any]:
    """A wide layer of low rank."""
    d_in, d_out, r = ((400, 50, 4), (300, 70, 3), (576, 30, 6))[case]
    return {"d_in": d_in, "d_out": d_out, "r": r}


def run_init(answer: SimpleNamespace, inputs: dict[str, Any]) -> dict[str, Any]:
    """What can be said of random matrices: shapes, rank, size, and what is zero."""
    a, b = answer.lora_init(**inputs)
    again, _ = answer.lora_init(**inputs)
    a, b, again = a.detach(), b.detach(), again.detach()
    usual = 1 / math.sqrt(3 * inputs["d_in"])  # the standard deviation of ±1/√d_in
    times = float(a.pow(2).mean().sqrt()) / usual
    return {
        "a_shape": list(a.shape),
        "b_shape": list(b.shape),
        "a_rank": int(torch.linalg.matrix_rank(a)),
        "b_is_zero": bool((b == 0).all()),
        "change_is_zero": bool((a @ b == 0).all()),
        # 0: about right; each further one is eight times larger
        "a_too_large": max(0, round(math.log(times, 8))) if times else 0,
        "a_differs_each_time": not torch.equal(a, again),
    }


def parameter_names(random_: random.Random, case: int) -> dict[str, Any]:
    """The parameters of a small GPT, some of whose layers have an adapter."""
    adapted = (("q_proj", "v_proj"), ("q_proj", "k_proj", "v_proj"), ("up_proj",))[case]
    names = ["token_embedding.weight"]
    for number in range(2 + case):
        names += [f"blocks.{number}.norm.weight", f"blocks.{number}.norm.bias"]
        for name in ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj"):
            path = f"blocks.{number}.{name}"
            names += [f"{path}.weight", f"{path}.bias"]
            names += [f"{path}.lora_a", f"{path}.lora_b"] if name in adapted else []
    return {"names": [*names, "final_norm.weight", "lm_head.weight"]}


def run_trainable(answer: SimpleNamespace, inputs: dict[str, Any]) -> dict[str, Any]:
    """The chosen names, in any order."""
    return {"trainable": sorted(answer.trainable(**inputs))}


def adapted_layer(random_: random.Random, case: int) -> dict[str, Any]:
    """A layer as a dict, not merged yet, and x."""
    made = forward(random_, case)
    x, scale = made.pop("x"), made.pop("alpha") / made.pop("r")
    return {"x": x, "layer": {**made, "scale": scale, "merged": False}}


def run_merging(answer: SimpleNamespace, inputs: dict[str, Any]) -> dict[str, Any]:
    """Merge twice, then unmerge twice; what comes out after each."""
    x, mine = inputs["x"], dict(inputs["layer"])
    seen = {"plain": answer.forward(x, mine)}
    for name, change in (
        ("merged", answer.merge_layer),
        ("merged_twice", answer.merge_layer),
        ("unmerged", answer.unmerge_layer),
        ("unmerged_twice", answer.unmerge_layer),
        ("merged_again", answer.merge_layer),
    ):
        change(mine)
        seen |= {f"w_{name}": mine["w"], f"y_{name}": answer.forward(x, mine)}
    return seen


def nothing(random_: random.Random, case: int) -> dict[str, Any]:
    """No inputs: the file holds answers."""
    return {}


MARK = ("week9-lora",)

EXERCISES = (
    Exercise("lora.01", 9, ("lora_forward",), forward, outputs=("output",), checkpoint=MARK),
    Exercise("lora.02", 9, ("lora_init",), sizes, run_init, checkpoint=MARK),
    Exercise("lora.03", 9, ("merge",), to_merge, outputs=("merged",), checkpoint=MARK),
    Exercise("lora.04", 9, ("trainable",), parameter_names, run_trainable, checkpoint=MARK),
    Exercise(
        "lora.05", 9,
        ("full_count", "lora_count", "model_count", "a_stays_first", "b_stays_first"),
        nothing, kind="predict", cases=1,
    ),
    Exercise(
        "lora.06", 9, ("forward", "merge_layer", "unmerge_layer"), adapted_layer, run_merging,
        kind="repair", starts_with="LORA-32",
    ),
)  # fmt: skip
