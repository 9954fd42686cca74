"""Do small runs follow L(N, D) = E + A/N^α + B/D^β, and what does the fit foretell?

    python benchmarks/scaling_laws.py --data tinyshakespeare.txt --json laws.json --output laws.png
    python benchmarks/scaling_laws.py --points laws.json --output laws.png

Every size is trained on every number of characters, each time with a schedule made for that length.
N counts what takes part in products: blocks, norms and the output matrix, without the table that
is only looked up (`count_parameters(config).non_embedding`), so that 6·N·D are the operations but
for attention's scores. D counts characters seen, repetitions included: tinyshakespeare has a
million to train on, so that two millions are two passes.

All sizes have the same depth: in runs this short a second layer gives more than its parameters do,
and one N would stand for two losses. The rate falls with the width and with the length.

Printed are each run beside the fit; what a fit without the largest N and the largest D says of
these; how far the constants move when points are drawn anew or one N or D is left out; and the
best split of a few budgets. --points fits an earlier --json again without training.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from math import exp, isfinite, log
from pathlib import Path
from statistics import mean
from typing import Any

from tinyshakespeare import Text, train_recipe

from foundation.demonstration import new_figure, save_figure, use_utf8
from foundation.files import read_json
from gpt_model.sizes import count_parameters
from training.recipes import RECIPES
from training.scaling_law import ScalingLaw, fit_scaling_law

SPRINT = RECIPES["sprint"]
SIZES = ((2, 32), (2, 48), (2, 64), (2, 96), (2, 128))  # layers, width
TOKENS = (125_000, 250_000, 500_000, 1_000_000, 2_000_000)
QUICK_SIZES = ((1, 16), (1, 32), (1, 48), (1, 64))
QUICK_TOKENS = (4096, 8192, 16384, 32768)
PER_STEP = SPRINT.training["batch_size"] * int(SPRINT.model["max_seq_len"])
BUDGETS = (3e11, 1e12, 3e12, 1e13)
RESAMPLES = 100


@dataclass(frozen=True)
class Point:
    """One run: how large, how long, how good."""

    n_layers: int
    dim: int
    seed: int
    n: int  # parameters without embeddings
    d: int  # tokens seen
    loss: float  # on the whole validation split, in nats per character
    seconds: float

    def __post_init__(self) -> None:
        for name in ("n", "d", "loss"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"a point's {name} must be a number, got {value!r}")
            if not (isfinite(value) and value > 0):
                raise ValueError(f"a point's {name} must be finite and > 0, got {value!r}")


def learning_rate(dim: int, steps: int) -> float:
    """From halves and doubles tried at widths 32 and 96: the wider wanted half of 1/√width."""
    return 0.03 * (32 / dim) * (220 / steps) ** 0.35


def train(text: Text, n_layers: int, dim: int, tokens: int, seed: int) -> Point:
    """One run of the grid."""
    steps = round(tokens / PER_STEP)
    if steps < 4:
        raise ValueError(f"tokens must be at least {4 * PER_STEP}, got {tokens}")
    model = {
        "n_layers": n_layers,
        "dim": dim,
        "n_heads": max(1, dim // 32),
        "bigram_rows": None,  # a table that does not grow with the model
    }
    training = {
        "steps": steps,
        "warmup_steps": min(10, steps // 4),
        "decay_steps": steps // 2,
        "learning_rate": learning_rate(dim, steps),
    }
    n = count_parameters(SPRINT.model_config(text.vocab_size, **model)).non_embedding
    run = train_recipe(SPRINT, text, seed, model=model, training=training)
    return Point(n_layers, dim, seed, n, run.n_tokens, run.loss, run.seconds)


def fit(points: Iterable[Point]) -> ScalingLaw:
    return fit_scaling_law([(point.n, point.d, point.loss) for point in points])


def residual(point: Point, law: ScalingLaw) -> float:
    """How far the measured loss lies above the law, as a share."""
    return point.loss / law.loss(point.n, point.d) - 1


def table(points: Sequence[Point], law: ScalingLaw) -> list[str]:
    """Measured, fitted and residual of every run."""
    lines = [
        f"{'model':>8}{'N':>10}{'D':>11}{'seed':>6}{'measured':>10}{'fitted':>9}{'residual':>10}"
    ]
    for point in sorted(points, key=lambda point: (point.n, point.d, point.seed)):
        lines.append(
            f"{f'{point.n_layers} x {point.dim}':>8}{point.n:>10,}{point.d:>11,}{point.seed:>6}"
            f"{point.loss:>10.4f}{law.loss(point.n, point.d):>9.4f}"
            f"{100 * residual(point, law):>+9.2f}%"
        )
    return lines


def errors(points: Sequence[Point], law: ScalingLaw) -> str:
    """The residuals in a few words."""
    sizes = [abs(100 * residual(point, law)) for point in points]
    return f"mean {mean(sizes):.2f} %, worst {max(sizes):.2f} %"


def outer_edge(points: Sequence[Point]) -> tuple[list[Point], list[Point]]:
    """(the rest, the runs with the largest N or the largest D)."""
    largest_n, largest_d = max(p.n for p in points), max(p.d for p in points)
    edge = [p for p in points if p.n == largest_n or p.d == largest_d]
    return [p for p in points if p not in edge], edge


@dataclass(frozen=True)
class Prediction:
    """What a fit without the outer edge says of it."""

    law: ScalingLaw
    held_out: list[Point]
    last: float  # the lowest loss of the rest: the guess of one who does not extrapolate

    @classmethod
    def make(cls, points: Sequence[Point]) -> Prediction:
        rest, edge = outer_edge(points)
        return cls(fit(rest), edge, min(point.loss for point in rest))

    def lines(self) -> list[str]:
        largest = max(self.held_out, key=lambda point: point.n * point.d)
        foretold = self.law.loss(largest.n, largest.d)
        return [
            *table(self.held_out, self.law),
            f"foretold without them: {errors(self.held_out, self.law)}",
            f"the largest run: {largest.loss:.4f}, foretold {foretold:.4f} "
            f"({100 * residual(largest, self.law):+.2f}%), the best of the rest {self.last:.4f} "
            f"({100 * (largest.loss / self.last - 1):+.2f}%)",
        ]


def enough(points: Sequence[Point]) -> bool:
    return min(len({p.n for p in points}), len({p.d for p in points})) >= 3


def resampled(points: Sequence[Point], times: int) -> list[ScalingLaw]:
    """Fits to as many points drawn with replacement."""
    draw = random.Random(0)
    laws: list[ScalingLaw] = []
    while len(laws) < times:
        chosen = draw.choices(points, k=len(points))
        if enough(chosen):
            laws.append(fit(chosen))
    return laws


def without_one(points: Sequence[Point]) -> dict[str, ScalingLaw]:
    """Fits without one N, and without one D, each in turn."""
    laws = {}
    for name in ("n", "d"):
        for value in sorted({getattr(point, name) for point in points}):
            rest = [point for point in points if getattr(point, name) != value]
            if enough(rest):
                laws[f"{name.upper()} = {value:,}"] = fit(rest)
    return laws


def interval(values: Iterable[float]) -> tuple[float, float]:
    """What holds the middle 80 %."""
    ordered = sorted(values)
    margin = len(ordered) // 10
    return ordered[margin], ordered[-1 - margin]


def constants(law: ScalingLaw) -> str:
    return (
        f"E {law.E:.3f}  A {law.A:.4g}  alpha {law.alpha:.3f}  B {law.B:.4g}  beta {law.beta:.3f}"
    )


def splits(law: ScalingLaw, laws: Sequence[ScalingLaw], points: Sequence[Point]) -> list[str]:
    """The best N and D of a few budgets, and between what N the drawn fits lie."""
    lines = [f"{'FLOPs':>8}{'N*':>12}{'D*':>13}{'loss':>8}   80 % of the drawn N*"]
    sizes, tokens = [point.n for point in points], [point.d for point in points]
    for budget in BUDGETS:
        n, d = law.optimal(budget)
        line = f"{budget:>8.0e}{n:>12,.0f}{d:>13,.0f}{law.loss(n, d):>8.3f}"
        if laws:
            low, high = interval(each.optimal(budget)[0] for each in laws)
            line += f"   {low:,.0f} to {high:,.0f}"
        measured = min(sizes) <= n <= max(sizes) and min(tokens) <= d <= max(tokens)
        lines.append(line + ("" if measured else "  beyond the runs"))
    return lines


def draw(points: Sequence[Point], law: ScalingLaw, early: ScalingLaw, path: Path) -> None:
    """The loss over D, one colour for each N; the fits as lines."""
    figure, axes = new_figure(size=(7.5, 5.0))
    first, last = min(p.d for p in points), max(p.d for p in points)
    span = log(last / first)
    grid = [first * exp(span * k / 60) for k in range(61)]
    _, edge = outer_edge(points)
    for index, n in enumerate(sorted({point.n for point in points})):
        color = f"C{index % 10}"
        axes.plot(grid, [law.loss(n, d) for d in grid], color=color, label=f"N = {n:,}")
        axes.plot(grid, [early.loss(n, d) for d in grid], color=color, linestyle=":", linewidth=1)
        for group, fill in ((edge, "none"), ([p for p in points if p not in edge], color)):
            mine = [(p.d, p.loss) for p in group if p.n == n]
            if mine:
                axes.scatter(*zip(*mine, strict=True), edgecolors=color, facecolors=fill, zorder=3)
    axes.plot([], [], color="gray", linestyle=":", label="fit without the open points")
    axes.set_xscale("log")
    axes.set_xlabel("D, characters seen")
    axes.set_ylabel("validation loss, nats per character")
    axes.set_title(constants(law), fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    save_figure(figure, path)


def report(points: Sequence[Point], resamples: int) -> tuple[dict[str, Any], Prediction]:
    """Print everything; return the figures."""
    law, prediction = fit(points), Prediction.make(points)
    print("\n".join(["", *table(points, law), f"residuals: {errors(points, law)}", constants(law)]))
    print("\n".join(["", "without the largest N and D:", *prediction.lines()]))
    print(constants(prediction.law))
    drawn = resampled(points, resamples)
    left_out = without_one(points) if resamples else {}
    spread = {
        name: interval(getattr(each, name) for each in drawn)
        for name in ("E", "alpha", "beta")
        if drawn
    }
    if drawn:
        ranges = (f"{name} {low:.3f} to {high:.3f}" for name, (low, high) in spread.items())
        print(f"\n{len(drawn)} fits to points drawn anew, the middle 80 %: " + "  ".join(ranges))
    print("\n".join(f"without {name:<14} {constants(each)}" for name, each in left_out.items()))
    print("\n".join(["", *splits(law, drawn, points)]))
    figures = {
        "law": asdict(law),
        "without the largest": asdict(prediction.law),
        "spread": spread,
        "without one": {name: asdict(each) for name, each in left_out.items()},
    }
    return figures, prediction


def read_points(path: Path) -> list[Point]:
    """The points of an earlier --json."""
    try:
        saved = read_json(path)["points"]
        return [Point(**each) for each in saved]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is not what --json wrote: {error}") from error


def size(text: str) -> tuple[int, int]:
    """2x64 -> (2, 64)."""
    layers, times, dim = text.partition("x")
    if not (times and layers.isdecimal() and dim.isdecimal() and int(layers) and int(dim)):
        raise argparse.ArgumentTypeError(f"expected LAYERSxWIDTH such as 2x64, got {text!r}")
    return int(layers), int(dim)


def measure(options: argparse.Namespace) -> list[Point]:
    """Train the grid, the shortest runs first; print the runs as they come."""
    sizes = options.sizes or (QUICK_SIZES if options.quick else SIZES)
    tokens = options.tokens or (QUICK_TOKENS if options.quick else TOKENS)
    text = Text.read(options.data)
    points = []
    for d in sorted(tokens):
        for n_layers, dim in sizes:
            for seed in options.seeds:
                points.append(train(text, n_layers, dim, d, seed))
                last = points[-1]
                print(
                    f"{n_layers} x {dim:<4} {last.d:>9,} characters, seed {seed}: {last.loss:.4f} "
                    f"after {last.seconds:.1f} s",
                    flush=True,
                )
    return points


def run(options: argparse.Namespace, write: Callable[[dict[str, Any]], None]) -> None:
    points = read_points(options.points) if options.points else measure(options)
    write({"points": [asdict(point) for point in points]})  # the training is not lost to a bad fit
    figures, prediction = report(points, 0 if options.quick else options.resamples)
    write({"points": [asdict(point) for point in points], **figures})
    if options.output:
        draw(points, fit(points), prediction.law, options.output)


def main() -> None:
    """Train the grid or read it; fit, foretell, draw."""
    use_utf8()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path, help="tinyshakespeare as one file")
    source.add_argument("--points", type=Path, help="what --json wrote: fit again, train nothing")
    parser.add_argument("--sizes", type=size, nargs="+", metavar="LAYERSxWIDTH")
    parser.add_argument("--tokens", type=int, nargs="+", help="characters of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--resamples", type=int, default=RESAMPLES, help="draws for the spread; 0: no spread"
    )
    parser.add_argument("--output", type=Path, help="draw here (png, svg, pdf)")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--quick", action="store_true", help="a tiny grid, no spread")
    options = parser.parse_args()

    def write(figures: dict[str, Any]) -> None:
        if options.json:
            options.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")

    try:
        run(options, write)
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
