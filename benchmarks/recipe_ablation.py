"""What is each choice of the fast recipe worth? One at a time, at fixed steps.

    python benchmarks/recipe_ablation.py --data tinyshakespeare.txt [--seeds 0 1 2] [--only NAME …]

The base is the `sprint` recipe with three layers and more steps. Every row changes one choice and
trains with the same seeds on the same tokens (unless it says so); the difference is taken seed by
seed, so that what a seed does to all rows cancels. Positive: the change makes the loss worse, so
the choice pays.
Rows within two standard errors of zero gave nothing; they are printed all the same.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from tinyshakespeare import Run, Text, spread, train_recipe

from foundation.demonstration import use_utf8
from gpt_model.sizes import flops_per_token
from training.recipes import RECIPES

SPRINT = RECIPES["sprint"]
STEPS = 300


@dataclass(frozen=True)
class Change:
    """One row: what differs from the base."""

    model: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    steps: float = 1.0  # times the base's steps: another batch, the same tokens
    decay: float = 0.5  # the share of the steps in which the rate falls


BASE = {"n_layers": 3}
RATE, BATCH = 0.01, SPRINT.training["batch_size"]
CHANGES = {
    "base": Change(),
    # the previous token
    "no token shift": Change({"token_shift": False}),
    "no pair embeddings": Change({"bigram_rows": None}),
    "neither": Change({"token_shift": False, "bigram_rows": None}),
    "1 layer": Change({"n_layers": 1}),
    "2 layers": Change({"n_layers": 2}),
    "4 layers, no pairs": Change({"bigram_rows": None, "n_layers": 4}),
    # the block
    "learned positions": Change({"position": "learned"}),
    "no q/k norm": Change({"qk_norm": False}),
    "LayerNorm": Change({"norm": "layernorm"}),
    "GELU": Change({"activation": "gelu_tanh"}),
    "SwiGLU": Change({"activation": "silu", "gated_ffn": True}),
    "biases": Change({"qkv_bias": True, "proj_bias": True}),
    # beginning and end
    "no zero init": Change({"zero_init": False}),
    "tied embeddings": Change({"tie_embeddings": True}),
    "logit softcap 15": Change({"logit_softcap": 15.0}),
    "dropout 0.1": Change({"dropout": 0.1}),
    # the optimizer
    "AdamW 3e-3": Change(training={"optimizer": "adamw", "learning_rate": 3e-3}),
    "AdamW 6e-3": Change(training={"optimizer": "adamw", "learning_rate": 6e-3}),
    "rate x 2": Change(training={"learning_rate": 2 * RATE}),
    "rate / 2": Change(training={"learning_rate": RATE / 2}),
    "momentum 0.9": Change(training={"muon_momentum": 0.9}),
    "weight decay 0.1": Change(training={"weight_decay": 0.1}),
    # the schedule and the batch
    "cosine": Change(training={"schedule": "cosine"}),
    "decay over 1/5": Change(decay=0.2),
    "no decay": Change(training={"schedule": "constant"}),
    "batch x 2": Change(training={"batch_size": 2 * BATCH}, steps=0.5),
    "batch / 2": Change(training={"batch_size": BATCH // 2}, steps=2.0),
    "fp32": Change(training={"precision": "fp32"}),
}


def train(change: Change, text: Text, seed: int, steps: int) -> Run:
    """The base with one change."""
    steps = max(4, int(steps * change.steps))
    schedule = {
        "steps": steps,
        "decay_steps": int(steps * change.decay),
        "warmup_steps": min(10, steps // 4),
    }
    training = {"learning_rate": RATE, **schedule, **change.training}
    return train_recipe(SPRINT, text, seed, model={**BASE, **change.model}, training=training)


def row(name: str, runs: list[Run], base: list[Run], work: float) -> str:
    """One line: the loss, the paired difference, how sure, the cost."""
    gaps = [run.loss - other.loss for run, other in zip(runs, base, strict=True)]
    text, mark = f"{mean(gaps):+.4f}", ""
    if len(gaps) > 1:
        text += f" ± {stdev(gaps):.4f}"
        error = stdev(gaps) / sqrt(len(gaps))
        mark = "" if abs(mean(gaps)) > 2 * error else "  nothing"
    seconds = mean(run.seconds for run in runs) / mean(run.seconds for run in base)
    losses = spread([run.loss for run in runs], 4)
    text, mark = ("", "") if name == "base" else (text, mark)
    return f"{name:<20}{losses:>18}{text:>20}{work:>9.2f}{seconds:>9.2f}{mark}"


def main() -> None:
    """Train every change with every seed; print the table as it grows."""
    use_utf8()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="tinyshakespeare as one file")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--only", nargs="+", choices=list(CHANGES), default=list(CHANGES))
    parser.add_argument("--quick", action="store_true", help="a few steps, one seed")
    options = parser.parse_args()
    text = Text.read(options.data)
    steps, seeds = (20, options.seeds[:1]) if options.quick else (options.steps, options.seeds)
    tokens = steps * BATCH * int(SPRINT.model["max_seq_len"])
    print(f"{steps} steps of {BATCH} x {SPRINT.model['max_seq_len']}: {tokens:,} tokens")
    print(f"{'':<20}{'loss':>18}{'change':>20}{'FLOPs':>9}{'seconds':>9}")
    base_work = flops_per_token(SPRINT.model_config(text.vocab_size, **BASE))
    base: list[Run] = []
    for name in dict.fromkeys(["base", *options.only]):
        change = CHANGES[name]
        runs = [train(change, text, seed, steps) for seed in seeds]
        base = base or runs
        config = SPRINT.model_config(text.vocab_size, **{**BASE, **change.model})
        print(row(name, runs, base, flops_per_token(config) / base_work), flush=True)


if __name__ == "__main__":
    main()
