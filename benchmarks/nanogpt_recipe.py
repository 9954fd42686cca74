"""Is the whole chain right? nanoGPT's CPU recipe for tinyshakespeare characters, run by our parts.

    python benchmarks/nanogpt_recipe.py --text tinyshakespeare.txt [--seeds 0 1 2] [--nanogpt DIR]

4 layers, 4 heads, width 128, context 64; 2000 steps of 12 x 64 characters; AdamW 1e-3 -> 1e-4,
warmup 100, beta2 0.99, weight decay 0.1, clipping 1.0. Reported: the loss on the whole validation
split (the last tenth of the text) in non-overlapping blocks of 64, for every seed.

`--nanogpt DIR` trains a checkout of github.com/karpathy/nanoGPT beside it with its own train.py
and measures its checkpoint in the same way. The text is not part of this project.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean

from tinyshakespeare import CLASSIC, Run, Text, spread, train_nanogpt, train_recipe

from foundation.demonstration import use_utf8


def report(name: str, runs: list[Run]) -> None:
    """Print one line of the table."""
    losses = [run.loss for run in runs]
    seconds = mean(run.total_seconds for run in runs)
    each = " ".join(f"{loss:.4f}" for loss in losses)
    print(f"{name:<10} loss {spread(losses, 4):<16} ({each})  {seconds:.0f} s each")


def main() -> None:
    """Train every seed, ours and the peer's alternating, and print the table."""
    use_utf8()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, required=True, help="tinyshakespeare as one file")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT to run beside")
    options = parser.parse_args()
    text = Text.read(options.text)
    ours, peer = [], []
    for seed in options.seeds:
        ours.append(train_recipe(CLASSIC, text, seed, training={"precision": "fp32"}))
        if options.nanogpt is not None:
            peer.append(train_nanogpt(options.nanogpt, text, seed))
    report("ours", ours)
    if peer:
        report("nanoGPT", peer)


if __name__ == "__main__":
    main()
