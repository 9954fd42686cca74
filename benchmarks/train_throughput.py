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
see what it gives on this machine (docs/why_fast.md explains them).

The share is of the best bf16 or fp32 matrix product measured in the same minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from foundation.allocator import keep_freed_memory
from foundation.demonstration import use_utf8
from gpt_model.config import preset
from gpt_model.model import GPT
from transformer_basics.linear import SPEED_UPS


@dataclass(frozen=True)
class Shape:
    n_layers: int
    n_heads: int
    dim: int
    length: int
    vocab: int
    batch: int

    @property
    def tokens(self) -> int:
        return self.batch * self.length

    @property
    def flops_per_token(self) -> float:
        """6 per weight of a product, and the attention scores (not halved for causality)."""
        weights = 12 * self.n_layers * self.dim**2 + self.vocab * self.dim
        return 6 * weights + 12 * self.n_layers * self.dim * self.length


SHAPES = {
    "micro12": Shape(4, 4, 128, 64, 65, 12),
    "micro64": Shape(4, 4, 128, 64, 65, 64),
    "mini": Shape(6, 6, 384, 256, 65, 16),
    "gpt2": Shape(12, 12, 768, 512, 50257, 2),
}
STEPS = {"micro12": 30, "micro64": 10, "mini": 3, "gpt2": 2}
OURS = ["ours-fp32", "ours-bf16"]
# switched off one at a time by --shares
SPEED_UP_NAMES = ["written", "joined", "pieces", "blocked", "chunks", "memory", "fused"]
HUGGING_FACE = ["hf-fp32", "hf-bf16"]
NANOGPT = ["nanogpt-fp32", "nanogpt-bf16", "nanogpt-bf16-compile"]

Step = Callable[[], float]


def build(name: str, shape: Shape, nanogpt: str | None, device: str) -> tuple[Any, Any]:
    """The model and a function of its loss."""
    ids = torch.randint(shape.vocab, (shape.batch, shape.length), device=device)
    targets = torch.randint(shape.vocab, (shape.batch, shape.length), device=device)
    if name.startswith("hf"):
        from transformers import GPT2Config, GPT2LMHeadModel

        config = GPT2Config(
            vocab_size=shape.vocab,
            n_positions=shape.length,
            n_embd=shape.dim,
            n_layer=shape.n_layers,
            n_head=shape.n_heads,
            activation_function="gelu",
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
        return GPT2LMHeadModel(config).to(device), lambda net: net(ids, labels=targets).loss
    sys.path.insert(0, str(nanogpt))
    from model import GPT as NanoGPT  # noqa: N811 - the peer's own names
    from model import GPTConfig as NanoConfig

    with contextlib.redirect_stdout(io.StringIO()):
        model = NanoGPT(
            NanoConfig(
                block_size=shape.length,
                vocab_size=shape.vocab,
                n_layer=shape.n_layers,
                n_head=shape.n_heads,
                n_embd=shape.dim,
                dropout=0.0,
                bias=False,
            )
        )
    return model.to(device), lambda net: net(ids, targets)[1]


def trainer_step(name: str, shape: Shape, device: str) -> Step:
    """The step that Trainer takes, with its NaN guard and its report."""
    from training.accumulation import language_model_loss
    from training.batch import Batch
    from training.train_config import TrainConfig
    from training.train_step import TrainStep

    torch.manual_seed(0)
    ids = torch.randint(shape.vocab, (shape.batch, shape.length), device=device)
    batch = Batch(inputs=ids, targets=ids.roll(-1, 1))
    config = preset(
        "gpt2",
        vocab_size=shape.vocab,
        max_seq_len=shape.length,
        dim=shape.dim,
        n_layers=shape.n_layers,
        n_heads=shape.n_heads,
        activation="gelu",
        qkv_bias=False,
        proj_bias=False,
    )
    model = GPT(config).to(device)
    without = name.partition("-without-")[2]
    if without in SPEED_UPS:
        SPEED_UPS[without] = False
    loss_of = language_model_loss
    if without == "chunks":

        def loss_of(net: Any, batch: Batch) -> Any:
            return net(batch.inputs, batch.targets, reduction="sum").loss, batch.n_targets

    take = TrainStep(
        model,
        lambda index: batch,
        loss_of,
        TrainConfig(steps=10**6, learning_rate=1e-4, betas=(0.9, 0.99)),
        device=torch.device(device),
        precision=name.split("-")[1],
    )
    if without == "fused":
        for group in take.optimizer.param_groups:
            group["fused"] = False
    numbers = itertools.count()
    return lambda: take(next(numbers)).loss


def make_step(name: str, shape: Shape, nanogpt: str | None, device: str) -> Step:
    if name.startswith("ours"):
        return trainer_step(name, shape, device)
    torch.manual_seed(0)
    model, loss_of = build(name, shape, nanogpt, device)
    fast = name.endswith("compile")
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-4, betas=(0.9, 0.99), weight_decay=0.1, fused=fast
    )
    net = torch.compile(model) if name.endswith("compile") else model
    half = "bf16" in name

    def step() -> float:
        with torch.autocast(device, torch.bfloat16, enabled=half):
            loss = loss_of(net)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())  # waits for the device

    return step


def peak_bytes(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def worker(name: str, shape: Shape, nanogpt: str | None, device: str) -> None:
    """A child process: for each line "N" on stdin, N steps; their seconds as JSON on stdout."""
    if name.startswith("ours") and device == "cpu" and not name.endswith("without-memory"):
        keep_freed_memory()  # as Trainer does
    if name.startswith("hf"):
        import transformers  # noqa: F401 - imports do not count as memory of training
    if name == "peak":
        step: Step | None = None
    else:
        before = peak_bytes(device) if device == "cpu" else 0
        step = make_step(name, shape, nanogpt, device)
        loss = [step() for _ in range(3)][0]
        told = {"loss": loss, "ln_vocab": math.log(shape.vocab)}
        told |= {"bytes": peak_bytes(device) - before}
        print(json.dumps(told), flush=True)
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            began = time.perf_counter()
            if step is None:
                print(json.dumps(matrix_peaks(device)), flush=True)
                break
            step()
            seconds.append(time.perf_counter() - began)
        else:
            print(json.dumps(seconds), flush=True)


def matrix_peaks(device: str) -> dict[str, float]:
    """FLOP/s of the best square product of each type, here and now."""
    size = 2048 if device == "cpu" else 8192
    best = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        seconds = []
        for _ in range(6):
            began = time.perf_counter()
            product = left @ right
            float(product[0, 0])  # waits for the device
            seconds.append(time.perf_counter() - began)
        best[name] = 2 * size**3 / min(seconds[1:])
    return best


class Child:
    """One contender in its own process."""

    def __init__(self, name: str, shape_name: str, options: argparse.Namespace) -> None:
        command = [sys.executable, __file__, "--worker", name, "--shapes", shape_name]
        command += ["--device", options.device]
        if options.nanogpt is not None:
            command += ["--nanogpt", str(options.nanogpt)]
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
                running[name].seconds += running[name].ask(STEPS[shape_name])
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
        print(
            f"{name:26}{1e3 * middle:9.1f}{1e3 * min(seconds):9.1f}"
            f"{shape.tokens / middle:10.0f}{share:9.1%}{memory / 1e9:8.2f}GB"
        )
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


def compare_shares(shape_name: str, rows: dict[str, Any]) -> None:
    """How much slower without each."""
    whole = rows["ours-bf16"]["seconds"]
    for name, row in rows.items():
        if name != "ours-bf16":
            what = name.partition("-without-")[2] or "bf16"
            print(f"  without {what:8} {row['seconds'] / whole - 1:+7.1%} time")


def contenders(options: argparse.Namespace) -> list[str]:
    names = list(OURS)
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
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT to run beside")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--no-compile", action="store_true", help="leave compiled peers out")
    parser.add_argument("--no-hf", action="store_true", help="leave Hugging Face out")
    parser.add_argument("--shares", action="store_true", help="what does each speed-up give?")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.worker, SHAPES[options.shapes[0]], options.nanogpt, options.device)
        return
    tables = [measure(shape, options) for shape in options.shapes]
    if options.json is not None:
        options.json.write_text(json.dumps(tables, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
