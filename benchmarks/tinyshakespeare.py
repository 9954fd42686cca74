"""What the benchmarks on tinyshakespeare share: the split, one run of a recipe, nanoGPT's run.

Characters, the last tenth for validation, the loss on the whole of it in non-overlapping blocks of
the model's context. The text is not part of this project.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import torch

from foundation.allocator import keep_freed_memory
from foundation.files import read_text
from gpt_model.model import GPT
from tokenization.tokenizer import Tokenizer
from training.dataset import TokenBatches, sequential_batches
from training.hook_base import Hook, StepReport
from training.recipes import RECIPES, Recipe
from training.trainer import Trainer

CLASSIC = RECIPES["classic"]
BLOCK, BATCH = CLASSIC.model["max_seq_len"], CLASSIC.training["batch_size"]
STEPS = CLASSIC.training["steps"]

# Runs inside the peer's folder: its own classes, its own checkpoint, our way to measure.
MEASURE_PEER = """
import sys, numpy, torch
sys.path.insert(0, ".")
from model import GPT, GPTConfig
saved = torch.load("out-recipe/ckpt.pt", weights_only=True, map_location="cpu")
model = GPT(GPTConfig(**saved["model_args"]))
model.load_state_dict(saved["model"])
model.eval()
ids = numpy.fromfile("data/shakespeare_char/val.bin", dtype=numpy.uint16)
ids = torch.from_numpy(ids.astype(numpy.int64))
n = (len(ids) - 1) // 64
x, y = ids[: n * 64].view(n, 64), ids[1 : n * 64 + 1].view(n, 64)
with torch.no_grad():
    losses = [model(x[i : i + 1], y[i : i + 1])[1].item() for i in range(n)]
print(sum(losses) / n)
"""


@dataclass(frozen=True)
class Text:
    """The text as character ids, split once for every contender."""

    raw: str
    train: torch.Tensor
    val: torch.Tensor
    vocab_size: int

    @classmethod
    def read(cls, path: Path) -> Text:
        raw = read_text(path)
        tokenizer = Tokenizer.characters([raw], special_tokens=())
        ids = torch.tensor(tokenizer.encode(raw))
        cut = int(0.9 * len(ids))
        return cls(raw, ids[:cut], ids[cut:], tokenizer.vocab_size)


@dataclass(frozen=True)
class Run:
    """One training run, measured."""

    loss: float  # on the whole validation split, in nats per character
    seconds: float  # of training, without evaluation
    total_seconds: float  # with everything
    n_tokens: int
    n_parameters: int


class Stopwatch(Hook):
    """Adds up the seconds of the steps, which hold the data but no evaluation."""

    def __init__(self) -> None:
        self.seconds, self.n_tokens = 0.0, 0

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        self.seconds += report.seconds
        self.n_tokens += report.n_tokens


def train_recipe(
    recipe: Recipe,
    text: Text,
    seed: int,
    *,
    model: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
) -> Run:
    """Train a recipe with one seed, some of its fields changed."""
    keep_freed_memory()
    config = recipe.model_config(text.vocab_size, **(model or {}))
    torch.manual_seed(seed)
    net, watch = GPT(config), Stopwatch()
    changes = {"device": "cpu", "seed": seed, **(training or {})}
    settings = recipe.train_config(**changes)
    settings = settings.replace(eval_every=settings.steps)
    assert settings.batch_size is not None
    length = config.max_seq_len
    trainer = Trainer(
        net,
        TokenBatches(text.train, settings.batch_size, length, seed=seed),
        config=settings,
        hooks=[watch],
        val_batches=lambda: sequential_batches(text.val, 64 * 64 // length, length),
    )
    result = trainer.fit()
    assert result.val_loss is not None
    return Run(
        result.val_loss, watch.seconds, result.total_seconds, watch.n_tokens, net.num_parameters()
    )


def train_nanogpt(folder: Path, text: Text, seed: int, steps: int = STEPS) -> Run:
    """Train a checkout of nanoGPT with its own script, and measure its checkpoint as ours."""
    data = folder / "data" / "shakespeare_char"
    (data / "input.txt").write_text(text.raw, encoding="utf-8", newline="\n")
    if not (data / "val.bin").is_file():
        call([sys.executable, "prepare.py"], data)
    settings = {
        "device": "cpu",
        "compile": False,
        "eval_iters": 1,
        "eval_interval": steps,
        "log_interval": 1,
        "block_size": BLOCK,
        "batch_size": BATCH,
        "n_layer": 4,
        "n_head": 4,
        "n_embd": 128,
        "max_iters": steps,
        "lr_decay_iters": steps,
        "dropout": 0.0,
        "always_save_checkpoint": True,
        "out_dir": "out-recipe",
    }
    options = [f"--{name}={value}" for name, value in settings.items()]
    started = time.perf_counter()
    # Its seed is fixed inside train.py; an offset shifts it.
    code = "import torch, runpy, sys; s = torch.manual_seed; "
    code += f"torch.manual_seed = lambda x: s(x + {seed}); "
    code += f"sys.argv = ['train.py', 'config/train_shakespeare_char.py', *{options!r}]; "
    code += "runpy.run_path('train.py', run_name='__main__')"
    log = call([sys.executable, "-c", code], folder)
    total = time.perf_counter() - started
    # The first and the last iteration hold an evaluation; the median knows nothing of them.
    steps_ms = [float(ms) for ms in re.findall(r"^iter \d+: .* time ([\d.]+)ms", log, flags=re.M)]
    loss = float(call([sys.executable, "-c", MEASURE_PEER], folder).split()[-1])
    found = re.search(r"number of parameters: ([\d.]+)M", log)  # without positions, as it counts
    n_parameters = int(float(found[1]) * 1e6) if found else 0
    seconds = steps * median(steps_ms) / 1000
    return Run(loss, seconds, total, steps * BLOCK * BATCH, n_parameters)


def call(command: list[str], folder: Path) -> str:
    """Run a child process and return what it printed; its errors are shown."""
    done = subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8", check=False)
    if done.returncode:
        raise SystemExit(f"{command[:2]} failed in {folder}:\n{done.stderr[-2000:]}")
    return done.stdout


def spread(values: Sequence[float], digits: int) -> str:
    """Mean and standard deviation as text."""
    text = f"{mean(values):.{digits}f}"
    return text + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")
