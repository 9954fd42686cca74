"""How long until nanoGPT's loss, and how low in nanoGPT's time?

    python benchmarks/time_to_loss.py --data tinyshakespeare.txt [--nanogpt DIR] [--seeds 0 1 2]

Contenders take turns, seed by seed, so that a slow minute is slow for all:

    nanoGPT    a checkout's own train.py with its CPU recipe (with --nanogpt)
    classic    the same recipe by our parts, in float32
    sprint     the fewest computations to nanoGPT's loss
    steady     the lowest loss in nanoGPT's whole time
    speedrun   below 1.4697, which nanoGPT publishes for 10.7 M parameters on an A100

Every run has one schedule, made for its own length: "time until the loss" is that of the whole run.
Seconds are of training, data included and evaluation apart. Losses are of the whole validation
split in non-overlapping blocks of each model's own context, after the last step: nothing is picked
by looking at them. --quick runs a twentieth of the steps, to see that everything works.
"""

from __future__ import annotations

import argparse
import platform
from pathlib import Path
from statistics import mean, median

import torch
from tinyshakespeare import Run, Text, spread, train_nanogpt, train_recipe

from foundation.demonstration import use_utf8
from foundation.devices import resolve_precision
from training.recipes import RECIPES, Recipe

A100 = 1.4697  # nanoGPT's README, config/train_shakespeare_char.py
QUICK = 20
WIDTHS = (10, 11, 8, 17, 16, 17, 10, 27)


def train(name: str, text: Text, seed: int, nanogpt: Path | None, share: int) -> Run:
    """One run of a contender with a share of its steps."""
    if name == "nanoGPT":
        assert nanogpt is not None
        return train_nanogpt(nanogpt, text, seed, RECIPES["classic"].training["steps"] // share)
    recipe = RECIPES[name]
    changes = shortened(recipe, share)
    if name == "classic":
        changes["precision"] = "fp32"  # as nanoGPT runs on a CPU
    return train_recipe(recipe, text, seed, training=changes)


def shortened(recipe: Recipe, share: int) -> dict[str, object]:
    """The steps of the schedule, all divided."""
    names = ("steps", "warmup_steps", "decay_steps")
    if share == 1:
        return {}
    return {
        name: max(1, recipe.training[name] // share) for name in names if name in recipe.training
    }


def row(name: str, runs: list[Run], reference: float) -> str:
    """One line of the table."""
    seconds = [run.seconds for run in runs]
    cells = (
        name,
        f"{runs[0].n_parameters:,}",
        f"{runs[0].n_tokens / 1e6:.2f} M",
        spread([run.n_tokens / run.seconds for run in runs], 0),
        spread(seconds, 1),
        spread([run.loss for run in runs], 4),
        f"1/{reference / median(seconds):.1f}",
        " ".join(f"{run.loss:.4f}" for run in runs),
    )
    return line(cells)


def line(cells: tuple[str, ...]) -> str:
    return "  ".join(f"{cell:>{width}}" for cell, width in zip(cells, WIDTHS, strict=True)).rstrip()


def verdicts(runs: dict[str, list[Run]], rival: str) -> list[str]:
    """The three promises, each with its figures."""
    times = {name: median(run.seconds for run in each) for name, each in runs.items()}
    losses = {name: mean(run.loss for run in each) for name, each in runs.items()}

    def verdict(kept: bool, text: str) -> str:
        return f"{'met ' if kept else 'MISSED'}  {text}"

    factor, share = times[rival] / times["sprint"], times["steady"] / times[rival]
    return [
        verdict(
            losses["sprint"] <= losses[rival] and factor >= 10,
            f"{rival}'s loss {losses[rival]:.3f} in a tenth of its time: sprint reaches "
            f"{losses['sprint']:.3f} in 1/{factor:.1f}",
        ),
        verdict(
            losses["steady"] <= 1.50 and share <= 1,
            f"<= 1.50 in {rival}'s time: steady reaches {losses['steady']:.4f} in {share:.2f} of "
            "it",
        ),
        verdict(
            losses["speedrun"] < A100,
            f"< {A100}: speedrun reaches {losses['speedrun']:.4f} in {times['speedrun']:.0f} s",
        ),
    ]


def main() -> None:
    """Train every contender with every seed and print the table."""
    use_utf8()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="tinyshakespeare as one file")
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT to run beside")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--only", nargs="+", choices=sorted(RECIPES), help="these contenders of ours"
    )
    parser.add_argument("--quick", action="store_true", help="a twentieth of the steps, one seed")
    options = parser.parse_args()
    text = Text.read(options.data)
    names = (["nanoGPT"] if options.nanogpt else []) + (options.only or list(RECIPES))
    seeds, share = (options.seeds[:1], QUICK) if options.quick else (options.seeds, 1)
    precision = resolve_precision("auto", torch.device("cpu"))
    print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}; classic in fp32, the others in {precision}; seeds {seeds}"
    )
    runs: dict[str, list[Run]] = {name: [] for name in names}
    for seed in seeds:
        for name in names:
            runs[name].append(train(name, text, seed, options.nanogpt, share))
            last = runs[name][-1]
            print(f"seed {seed} {name:<9} {last.loss:.4f} after {last.seconds:.1f} s", flush=True)
    rival = "nanoGPT" if "nanoGPT" in runs else "classic" if "classic" in runs else names[0]
    reference = median(run.seconds for run in runs[rival])
    heading = ("", "parameters", "tokens", "tokens/s", "seconds", "loss", "time", "each loss")
    print("\n" + line(heading))
    for name in names:
        print(row(name, runs[name], reference))
    whole = " ".join(
        f"{name} {median(run.total_seconds for run in each):.1f}" for name, each in runs.items()
    )
    print(f"\nseconds with evaluation and start: {whole}")
    if not options.quick and {rival, "sprint", "steady", "speedrun"} <= set(runs):
        print("\n".join(verdicts(runs, rival)))


if __name__ == "__main__":
    main()
