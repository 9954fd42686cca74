"""How fast is a LoRA step, and how much memory does it take, beside PEFT's?

    python benchmarks/lora_step.py [--rounds 5] [--steps 2]

gpt2-124M with random weights, batch 4 x 256, rank 8 on every matrix of attention and feed-forward;
forward, backward, clipping, AdamW. That is all six, which is not what `fromzero finetune` adapts by
default (q, v, up and down); and ours joins the products of q, k and v only where all three are
adapted, so the command's default is not measured here. Each contender lives in a process of its
own; they take turns, a few steps each, and the median step counts. Peak memory is each process's
above its imports.

    lora-ours        as `fromzero finetune` does it: TrainStep with its NaN guard, the frozen base
                     once in 16 bits (bf16), the adapters' products fused
    lora-ours-qlora  the same with the frozen base in 4 bits
    lora-peft        transformers and PEFT: autocast for bf16, fused AdamW

The limit is the arithmetic: forward and the gradient of every input, no gradient of any frozen
weight, at the speed of the best matrix product measured in the same minutes.

On a machine that others use too, the time on the wall says little: --clock cpu counts the
processor's seconds instead; run that with OMP_NUM_THREADS=1, because waiting threads count too.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from statistics import median
from typing import Any

from step_worker import SHAPES, Shape
from train_throughput import children

from foundation.demonstration import use_utf8

CONTENDERS = ["lora-ours-bf16", "lora-peft-bf16", "lora-ours-qlora-bf16"]
FP32 = ["lora-ours-fp32", "lora-peft-fp32"]


def flops(shape: Shape) -> float:
    """Two products for every weight (the output and the gradient of the input), and attention."""
    weights = 12 * shape.n_layers * shape.dim**2 + shape.vocab * shape.dim
    # scores and their use, forward and twice backward; half of them are masked
    attention = 6 * shape.n_layers * shape.length * shape.dim
    return shape.tokens * (4 * weights + attention)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    shape = SHAPES["lora"]
    names = CONTENDERS + (FP32 if options.fp32 else [])
    peaks: dict[str, list[float]] = {"fp32": [], "bf16": []}
    with children([*names, "peak"], "lora", options) as running:
        for _ in range(options.rounds):
            for kind, value in running["peak"].ask(1).items():
                peaks[kind].append(value)
            for name in names:
                running[name].seconds += running[name].ask(options.steps)
    peak = {kind: median(values) for kind, values in peaks.items()}
    print(f"{'':24}{'s/step':>8}{'(min)':>8}{'limit':>8}{'loss':>9}{'memory':>10}")
    rows: dict[str, Any] = {}
    for name in names:
        child = running[name]
        row = {"seconds": median(child.seconds), "min": min(child.seconds), **child.first}
        row["limit"] = flops(shape) / peak["fp32" if name.endswith("fp32") else "bf16"]
        rows[name] = row
        print(
            f"{name:24}{row['seconds']:8.2f}{row['min']:8.2f}{row['limit']:8.2f}"
            f"{row['loss']:9.4f}{row['bytes'] / 1e9:8.2f}GB"
        )
    return rows


def compare(rows: dict[str, Any]) -> None:
    """The ratios that are promised."""
    for kind in ("bf16", "fp32"):
        ours, peer = rows.get(f"lora-ours-{kind}"), rows.get(f"lora-peft-{kind}")
        if ours is None or peer is None:
            continue
        print(
            f"{kind}: {peer['seconds'] / ours['seconds']:.2f} x PEFT's speed "
            f"({peer['min'] / ours['min']:.2f} by the fastest step), "
            f"{ours['bytes'] / max(1, peer['bytes']):.0%} of its memory"
        )


def main() -> None:
    use_utf8()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender")
    parser.add_argument("--steps", type=int, default=2, help="steps a turn")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--fp32", action="store_true", help="also in 32 bits")
    parser.add_argument("--clock", default="wall", choices=["wall", "cpu"])
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    options.nanogpt = None  # a peer of train_throughput.py
    os.environ["STEP_CLOCK"] = options.clock
    rows = measure(options)
    compare(rows)
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
