"""How fast is a training step, beside others' and beside the machine's own limit?

    python benchmarks/train_throughput.py [--shapes micro12 micro64 mini gpt2] [--nanogpt DIR]

Every contender trains the same shape on the same random tokens: forward, backward, clipping,
AdamW. Each lives in a process of its own (so that nobody profits from another's settings); the
processes take turns, a few steps each, and the median step counts: when the machine is slow for a
while, it is slow for all. Peak memory is the peak of each process above its imports.

    ours           the classic configuration with exact GELU and no biases, as nanoGPT's default
    hf-*           Hugging Face's GPT2LMHeadModel of the same width, depth and activation
    nanogpt-*      a checkout of github.com/karpathy/nanoGPT, its own model.py, with --nanogpt
    -bf16          autocast;  -compile  torch.compile with fused AdamW (its best)

With --shares the peers stay out; instead each speed-up of ours is switched off, one at a time, to
see what it gives on this machine (docs/why_fast.md explains them). With --checkpointing the three
kinds of gradient checkpointing are compared: time against theory (block: 4/3), memory against the
bytes that autograd keeps.

The share is of the best bf16 or fp32 matrix product measured in the same minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from step_worker import SHAPES

from foundation.demonstration import use_utf8

STEPS = {"micro12": 30, "micro64": 10, "mini": 3, "gpt2": 2}
OURS = ["ours-fp32", "ours-bf16"]
# switched off one at a time by --shares; "documents" is not among them: one document fills each row
SPEED_UP_NAMES = ["written", "joined", "pieces", "blocked", "backward", "chunks", "memory", "fused"]
HUGGING_FACE = ["hf-fp32", "hf-bf16"]
NANOGPT = ["nanogpt-fp32", "nanogpt-bf16", "nanogpt-bf16-compile"]

CHECKPOINTING = ["ours-bf16-selective", "ours-bf16-block"]


class Child:
    """One contender in its own process."""

    def __init__(self, name: str, shape_name: str, options: argparse.Namespace) -> None:
        script = Path(__file__).with_name("step_worker.py")
        command = [sys.executable, str(script), name, shape_name, options.device]
        if options.nanogpt is not None:
            command.append(str(options.nanogpt))
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, encoding="utf-8"
        )
        self.seconds: list[float] = []
        self.first: dict[str, float] = {} if name == "peak" else self.read()

    def read(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.process.args} ended with {self.process.wait()}")
        return json.loads(line)

    def ask(self, number: int) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{number}\n")
        self.process.stdin.flush()
        return self.read()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


@contextlib.contextmanager
def children(names: list[str], shape: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    started: dict[str, Child] = {}
    try:
        for name in names:  # one after the other: compiling beside a measurement would disturb it
            started[name] = Child(name, shape, options)
        yield started
    finally:
        for child in started.values():
            child.close()


def measure(shape_name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Take turns; print and return the rows of one shape."""
    shape, names = SHAPES[shape_name], contenders(options)
    peaks: dict[str, list[float]] = {"fp32": [], "bf16": []}
    with children([*names, "peak"], shape_name, options) as running:
        for _ in range(options.rounds):
            for kind, value in running["peak"].ask(1).items():
                peaks[kind].append(value)
            for name in names:
                running[name].seconds += running[name].ask(options.steps or STEPS[shape_name])
    peak = {kind: median(values) for kind, values in peaks.items()}
    print(
        f"\n{shape_name}: {shape.n_layers} layers, width {shape.dim}, {shape.batch} x "
        f"{shape.length} tokens, vocabulary {shape.vocab}; matrix products "
        f"fp32 {peak['fp32'] / 1e9:.0f}, bf16 {peak['bf16'] / 1e9:.0f} GFLOP/s"
    )
    print(f"{'':26}{'ms/step':>9}{'(min)':>9}{'tokens/s':>10}{'of peak':>9}{'memory':>10}")
    rows: dict[str, Any] = {}
    for name in names:
        seconds = running[name].seconds
        middle, kind = median(seconds), "bf16" if "bf16" in name else "fp32"
        share = shape.flops_per_token * shape.tokens / middle / peak[kind]
        memory = running[name].first["bytes"]
        rows[name] = {"seconds": middle, "min": min(seconds), "share": share, "bytes": memory}
        rows[name]["kept"] = running[name].first["kept"]
        print(
            f"{name:26}{1e3 * middle:9.1f}{1e3 * min(seconds):9.1f}"
            f"{shape.tokens / middle:10.0f}{share:9.1%}{memory / 1e9:8.2f}GB"
        )
    if options.checkpointing:
        compare_checkpointing(shape_name, rows)
    else:
        (compare_shares if options.shares else compare)(shape_name, rows)
    return {"shape": shape_name, "peak": peak, "rows": rows}


def compare(shape_name: str, rows: dict[str, Any]) -> None:
    """The ratios that are promised."""
    ours = min((rows[name] for name in rows if name in OURS), key=lambda row: row["seconds"])
    peers = {name: row for name, row in rows.items() if name not in OURS}
    if not peers:
        return
    best = min(peers, key=lambda name: peers[name]["seconds"])
    print(
        f"ours is {peers[best]['seconds'] / ours['seconds']:.2f} x the best peer ({best})", end=""
    )
    if "nanogpt-fp32" in peers:
        ratio = peers["nanogpt-fp32"]["seconds"] / ours["seconds"]
        print(f", {ratio:.2f} x nanoGPT eager fp32", end="")
    if "hf-fp32" in peers:
        memory = ours["bytes"] / max(1, peers["hf-fp32"]["bytes"])
        print(f"; memory {memory:.0%} of Hugging Face's", end="")
    print()


def compare_checkpointing(shape_name: str, rows: dict[str, Any]) -> None:
    """Measured and expected: block = one more forward, and only the inputs of the blocks kept."""
    plain, shape = rows["ours-bf16"], SHAPES[shape_name]
    inputs = 4 * shape.n_layers * shape.tokens * shape.dim
    for name in ("ours-bf16", *CHECKPOINTING):
        row = rows[name]
        saved = (plain["bytes"] - row["bytes"]) / 1e6
        print(
            f"  {name:22} time x {row['seconds'] / plain['seconds']:.2f}   kept for backward "
            f"{row['kept'] / 1e6:7.1f} MB   peak lower by {saved:6.1f} MB"
        )
    print(f"  theory, block: time x {4 / 3:.2f}, the blocks' inputs are {inputs / 1e6:.1f} MB")


def compare_shares(shape_name: str, rows: dict[str, Any]) -> None:
    """How much slower without each."""
    whole = rows["ours-bf16"]["seconds"]
    for name, row in rows.items():
        if name != "ours-bf16":
            what = name.partition("-without-")[2] or "bf16"
            print(f"  without {what:8} {row['seconds'] / whole - 1:+7.1%} time")


def contenders(options: argparse.Namespace) -> list[str]:
    names = list(OURS)
    if options.checkpointing:
        return ["ours-bf16", *CHECKPOINTING]
    if options.shares:
        return names + [f"ours-bf16-without-{name}" for name in SPEED_UP_NAMES]
    if not options.no_hf:
        names += HUGGING_FACE
    if options.nanogpt is not None:
        names += NANOGPT if not options.no_compile else NANOGPT[:2]
    return names


def main() -> None:
    use_utf8()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=list(STEPS), choices=list(STEPS))
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT to run beside")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender")
    parser.add_argument("--steps", type=int, help="steps a turn; without it what suits the shape")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--no-compile", action="store_true", help="leave compiled peers out")
    parser.add_argument("--no-hf", action="store_true", help="leave Hugging Face out")
    parser.add_argument("--shares", action="store_true", help="what does each speed-up give?")
    parser.add_argument("--checkpointing", action="store_true", help="memory against time")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    tables = [measure(shape, options) for shape in options.shapes]
    if options.json is not None:
        options.json.write_text(json.dumps(tables, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
