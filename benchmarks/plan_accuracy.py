"""How far is the memory formula of gpt_model/memory.py from what training really takes?

    python benchmarks/plan_accuracy.py [--quick] [--only NAME ...] [--json FILE]

Each run takes two training steps in a process of its own; measured is how far its resident
memory rose above what the imports and a warm-up step of a tiny model took. Prints measured,
formula and the gap of each run; exits with 1 where a gap is over 15 %.

The formula counts tensors, so freed memory is given back at once in these runs. Training itself
keeps it for speed unless it recomputes (foundation/allocator.py), and pieces of it do not fit
again: --kept shows how much more that takes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

LIMIT = 0.15


@dataclass(frozen=True)
class Run:
    """One training to measure."""

    layers: int
    dim: int
    vocab: int
    length: int
    batch: int
    precision: str = "fp32"
    checkpointing: str = "none"
    optimizer: str = "adamw"
    accumulation: int = 1
    family: str = "gpt2"  # whose parts, of any size

    def config(self) -> Any:
        from gpt_model.config import preset

        return preset(
            {"gpt2": "gpt2", "modern": "modern-small"}[self.family],
            n_layers=self.layers,
            dim=self.dim,
            n_heads=self.dim // 64 if self.dim >= 256 else 4,
            vocab_size=self.vocab,
            max_seq_len=self.length,
        )


WEIGHTS = Run(layers=6, dim=384, vocab=16000, length=256, batch=1)
ACTIVATIONS = Run(layers=6, dim=384, vocab=512, length=256, batch=16)
VOCABULARY = Run(layers=4, dim=128, vocab=50257, length=256, batch=8)
MODERN = replace(ACTIVATIONS, family="modern")

RUNS = {
    "weights": WEIGHTS,
    "weights-bf16": replace(WEIGHTS, precision="bf16"),
    "weights-muon": replace(WEIGHTS, optimizer="muon"),
    "weights-block": replace(WEIGHTS, checkpointing="block"),
    "activations": ACTIVATIONS,
    "activations-selective": replace(ACTIVATIONS, checkpointing="selective"),
    "activations-block": replace(ACTIVATIONS, checkpointing="block"),
    "activations-bf16": replace(ACTIVATIONS, precision="bf16"),
    "activations-bf16-selective": replace(ACTIVATIONS, precision="bf16", checkpointing="selective"),
    "activations-bf16-block": replace(ACTIVATIONS, precision="bf16", checkpointing="block"),
    "activations-accumulated": replace(ACTIVATIONS, accumulation=2),
    "long-bf16": replace(ACTIVATIONS, length=1024, batch=4, precision="bf16"),
    "modern": MODERN,
    "modern-bf16": replace(MODERN, precision="bf16"),
    "modern-block-muon": replace(MODERN, checkpointing="block", optimizer="muon"),
    "vocabulary": VOCABULARY,
    "vocabulary-bf16": replace(VOCABULARY, precision="bf16"),
    "vocabulary-muon": replace(VOCABULARY, optimizer="muon"),
    "muon": replace(WEIGHTS, vocab=512, optimizer="muon"),
    "balanced": replace(WEIGHTS, vocab=4096, batch=4),
    "balanced-accumulated": replace(WEIGHTS, vocab=4096, batch=4, accumulation=2),
}
QUICK = ("weights-muon", "activations-bf16", "activations-block", "vocabulary")


def resident(field: str = "VmHWM") -> int:
    """Bytes of this process's memory: VmHWM the most so far, VmRSS now (elsewhere the most)."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def forget_the_peak() -> None:
    """Let VmHWM start anew from what is resident now, where the system allows it."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        pass


def train(run: Run, steps: int) -> None:
    """Steps as Trainer takes them, on random tokens."""
    import torch

    from gpt_model.model import GPT
    from training.accumulation import language_model_loss
    from training.batch import Batch
    from training.train_config import TrainConfig
    from training.train_step import TrainStep

    torch.manual_seed(0)
    ids = torch.randint(run.vocab, (run.batch, run.length))
    batch = Batch(inputs=ids, targets=ids.roll(-1, 1))
    model = GPT(run.config()).train()
    model.use_checkpointing(run.checkpointing)
    config = TrainConfig(
        steps=100, optimizer=run.optimizer, grad_accumulation=run.accumulation, warmup_steps=0
    )
    step = TrainStep(
        model,
        lambda _: batch,
        language_model_loss,
        config,
        device=torch.device("cpu"),
        precision=run.precision,
    )
    for number in range(steps):
        assert not step(number).problem


def worker(run: Run, kept: bool) -> None:
    """In a child process: print the bytes that training took."""
    from foundation.allocator import keep_freed_memory, return_freed_memory

    if kept:
        keep_freed_memory()
    else:
        return_freed_memory()
    tiny = replace(run, layers=1, dim=64, vocab=512, length=64, batch=1)
    train(tiny, 2)
    forget_the_peak()
    before = resident("VmRSS")
    train(run, 2)
    print(resident() - before)


def measure(run: Run, *, kept: bool = False) -> int:
    """The bytes that training takes, in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--worker", json.dumps([asdict(run), kept])],
        env={**os.environ, "PYTHONUTF8": "1"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the run failed:\n{done.stderr}")
    return int(done.stdout.split()[-1])


def formula(run: Run) -> Any:
    from gpt_model.memory import training_memory

    return training_memory(
        run.config(),
        run.batch,
        precision=run.precision,
        checkpointing=run.checkpointing,
        optimizer=run.optimizer,
        grad_accumulation=run.accumulation,
        device="cpu",
    )


def main() -> int:
    from foundation.demonstration import use_utf8
    from gpt_model.sizes import human

    use_utf8()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few runs instead of all")
    parser.add_argument("--only", nargs="+", choices=RUNS, metavar="NAME")
    parser.add_argument("--kept", action="store_true", help="also as Trainer runs: nothing freed")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        run, kept = json.loads(arguments.worker)
        worker(Run(**run), kept)
        return 0
    names = arguments.only or (QUICK if arguments.quick else RUNS)
    gaps = {}
    heading = f"{'run':<28}{'measured':>10}{'formula':>10}{'gap':>8}"
    print(heading + f"{'kept':>10}" * arguments.kept + "   parts of the formula")
    for name in names:
        measured, estimate = measure(RUNS[name]), formula(RUNS[name])
        gaps[name] = estimate.total / measured - 1
        parts = ", ".join(f"{part} {human(size)}" for part, size in estimate.by_part().items())
        print(f"{name:<28}{human(measured, 'B'):>10}{human(estimate.total, 'B'):>10}", end="")
        kept = human(measure(RUNS[name], kept=True), "B") if arguments.kept else ""
        print(f"{gaps[name]:>+8.1%}" + f"{kept:>10}" * arguments.kept + f"   {parts}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(gaps, indent=2), encoding="utf-8")
    worst = max(gaps, key=lambda name: abs(gaps[name]))
    print(f"the worst: {worst}, {gaps[worst]:+.1%} (at most {LIMIT:.0%} either way)")
    return int(abs(gaps[worst]) > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
