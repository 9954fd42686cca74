"""你写的零件拼成一个 GPT：你的分词器、你的模型、你的训练、你的采样；这里只有接线。

    bpe ──▶ batch ──▶ gpt_forward ──▶ next_token_loss ──▶ train: clip, adamw_step
     │                  │ block, layer_norm, multi_head_attention, feed_forward
     │                  ▼
     └── decode ◀── generate: apply_temperature, top_k, draw

Every name below is a function of an exercise. What is not solved yet is listed, and nothing is put
in its place.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from course.exercise import Exercise, all_exercises

__all__ = ["PARTS", "Sizes", "build_and_train", "gather_parts", "run_parts"]

PARTS = (
    "train_bpe", "encode", "decode", "batch",
    "gpt_forward", "block", "layer_norm", "multi_head_attention", "feed_forward",
    "initial_std", "next_token_loss", "clip_gradients", "adamw_step", "learning_rate", "train",
    "generate", "apply_temperature", "top_k", "softmax", "draw",
)  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """A model that trains on a laptop in about a minute."""

    text: int = 40_000  # characters to learn from
    merges: int = 200
    block_size: int = 48
    batch_size: int = 16
    dim: int = 64
    n_heads: int = 4
    n_layers: int = 2
    steps: int = 300
    max_rate: float = 3e-3


@dataclass
class Built:
    """What came out: the losses before and after, a text, seconds."""

    first_loss: float
    last_loss: float
    text: str
    seconds: float
    n_parameters: int


def exercises_with(name: str) -> list[Exercise]:
    """The exercises in which a function of that name is written."""
    known = all_exercises().values()
    return [e for e in known if name in e.names and e.kind != "repair"]


def gather_parts(folder: Path) -> tuple[SimpleNamespace, list[str]]:
    """The learner's functions by name, and the IDs of the exercises that are still to do."""
    from course.workspace import Workspace

    workspace = Workspace(folder)
    found: dict[str, Callable[..., Any]] = {}
    missing: list[str] = []
    spaces: dict[str, dict[str, Any]] = {}
    for name in PARTS:
        homes = exercises_with(name)
        assert homes, f"no exercise has {name}"
        exercise = homes[0]
        path = folder / exercise.file_name
        if not workspace.record(exercise)["passed"] or not path.is_file():
            missing.append(exercise.id)
            continue
        if exercise.id not in spaces:
            spaces[exercise.id] = import_file(path)
        found[name] = spaces[exercise.id][name]
    return SimpleNamespace(**found), list(dict.fromkeys(missing))


def import_file(path: Path) -> dict[str, Any]:
    """Import a learner's file by its path; its names."""
    import importlib.util

    spec = importlib.util.spec_from_file_location(f"my_llm_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return vars(module)


class Model(nn.Module):
    """The weights, and the learner's functions that use them."""

    def __init__(self, parts: SimpleNamespace, vocab_size: int, sizes: Sizes) -> None:
        super().__init__()
        self.parts, self.sizes = parts, sizes
        width, hidden = sizes.dim, 4 * sizes.dim
        shapes = {"token_table": (vocab_size, width), "position_table": (sizes.block_size, width)}
        for layer in range(sizes.n_layers):
            shapes |= {f"{layer}.{name}": (width, width) for name in ("w_q", "w_k", "w_v", "w_o")}
            shapes |= {f"{layer}.w_up": (hidden, width), f"{layer}.w_down": (width, hidden)}
        self.weights = {
            name: torch.randn(shape) * parts.initial_std(name, sizes.n_layers, 0.02)
            for name, shape in shapes.items()
        }
        for layer in range(sizes.n_layers):
            self.weights[f"{layer}.b_up"] = torch.zeros(hidden)
            self.weights[f"{layer}.b_down"] = torch.zeros(width)
        norms = [f"{layer}.norm_{n}" for layer in range(sizes.n_layers) for n in (1, 2)]
        for norm in (*norms, "final"):
            self.weights[f"{norm}.weight"] = torch.ones(width)
            self.weights[f"{norm}.bias"] = torch.zeros(width)
        for name, weight in self.weights.items():
            self.weights[name] = nn.Parameter(weight)
            self.register_parameter(name.replace(".", "_"), self.weights[name])

    def norm(self, name: str) -> Callable[[Tensor], Tensor]:
        """The learner's layer norm with the weights of one place."""
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return lambda x: self.parts.layer_norm(x, weight, bias, 1e-5)

    def block(self, layer: int) -> Callable[[Tensor], Tensor]:
        """One of the learner's blocks."""

        def weights(*names: str) -> list[Tensor]:
            return [self.weights[f"{layer}.{name}"] for name in names]

        def attention(x: Tensor) -> Tensor:
            found: Tensor = self.parts.multi_head_attention(
                x, *weights("w_q", "w_k", "w_v", "w_o"), self.sizes.n_heads
            )
            return found

        def feed_forward(x: Tensor) -> Tensor:
            found: Tensor = self.parts.feed_forward(x, *weights("w_up", "b_up", "w_down", "b_down"))
            return found

        first, second = self.norm(f"{layer}.norm_1"), self.norm(f"{layer}.norm_2")
        return lambda x: self.parts.block(x, first, attention, second, feed_forward)

    def forward(self, ids: Tensor) -> Tensor:
        """ids (B, T) → logits (B, T, V)."""
        blocks = [self.block(layer) for layer in range(self.sizes.n_layers)]
        tables = self.weights["token_table"], self.weights["position_table"]
        logits: Tensor = self.parts.gpt_forward(ids, *tables, blocks, self.norm("final"))
        return logits


class Optimizer:
    """Used like those of torch; the arithmetic is the learner's clipping and AdamW."""

    def __init__(self, parts: SimpleNamespace, weights: list[nn.Parameter]) -> None:
        self.parts, self.weights, self.steps = parts, weights, 0
        self.param_groups: list[dict[str, Any]] = [{"params": weights, "lr": 0.0}]
        self.moments = [(torch.zeros_like(w), torch.zeros_like(w)) for w in weights]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        for weight in self.weights:
            weight.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """One update of every weight."""
        self.steps += 1
        gradients = [w.grad if w.grad is not None else torch.zeros_like(w) for w in self.weights]
        clipped, _ = self.parts.clip_gradients(gradients, 1.0)
        rate = self.param_groups[0]["lr"]
        for index, (weight, gradient) in enumerate(zip(self.weights, clipped, strict=True)):
            decay = 0.1 if weight.ndim == 2 else 0.0
            new, m, v = self.parts.adamw_step(
                weight.detach().clone(), gradient, *self.moments[index], self.steps,
                rate, 0.9, 0.95, 1e-8, decay,
            )  # fmt: skip
            weight.copy_(new)
            self.moments[index] = m, v


def run_parts(
    parts: SimpleNamespace,
    text: str,
    prompt: str,
    sizes: Sizes,
    report: Callable[[str], None] = lambda line: None,
    seed: int = 0,
) -> tuple[Built, Model]:
    """Train on the text, then write on from the prompt; everything with the learner's functions."""
    began = time.perf_counter()
    torch.manual_seed(seed)
    random_ = random.Random(seed)
    merges = parts.train_bpe(text, sizes.merges)
    tokens = torch.tensor(parts.encode(text, merges))
    report(f"BPE: {len(merges)} merges, {len(text.encode())} bytes → {len(tokens)} tokens")
    model = Model(parts, 256 + len(merges), sizes)
    weights = list(model.parameters())

    def some_batch() -> Tensor:
        # a window of inputs and the target behind it: the loss shifts by itself
        length = sizes.block_size - 1
        starts = [random_.randint(0, len(tokens) - length - 1) for _ in range(sizes.batch_size)]
        inputs, targets = parts.batch(tokens, torch.tensor(starts), length)
        return torch.cat([inputs, targets[:, -1:]], dim=1)

    def loss_fn(trained: nn.Module, ids: Tensor) -> Tensor:
        report_step()
        loss: Tensor = parts.next_token_loss(trained(ids), ids)
        losses.append(loss.item())
        return loss

    def schedule(step: int) -> float:
        lowest, warmup = sizes.max_rate / 10, sizes.steps // 10
        rate = parts.learning_rate(step, sizes.max_rate, lowest, warmup, sizes.steps)
        return float(rate)

    def report_step() -> None:
        if losses and (len(losses) - 1) % max(1, sizes.steps // 6) == 0:
            report(f"step {len(losses) - 1:4}  loss {losses[-1]:.3f}")

    losses: list[float] = []
    batches = [some_batch() for _ in range(sizes.steps)]
    optimizer = Optimizer(parts, weights)
    # clipping is the optimizer's, so the loop's own limit is out of reach
    parts.train(model, loss_fn, batches, sizes.steps, optimizer, schedule, 1e9)
    written = write_on(parts, model.eval(), merges, prompt, sizes, random_)
    count = sum(weight.numel() for weight in weights)
    last = sum(losses[-10:]) / len(losses[-10:])
    return Built(losses[0], last, written, time.perf_counter() - began, count), model


def write_on(
    parts: SimpleNamespace,
    model: Model,
    merges: list[Any],
    prompt: str,
    sizes: Sizes,
    random_: random.Random,
) -> str:
    """Continue a prompt with the learner's own sampling."""

    def next_logits(ids: list[int]) -> Tensor:
        with torch.no_grad():
            logits: Tensor = model(torch.tensor([ids]))[0, -1]
        return logits

    def choose(logits: Tensor) -> int:
        rows = parts.top_k(parts.apply_temperature(logits[None], 0.8), 20)
        point = torch.tensor([random_.random()])
        return int(parts.draw(parts.softmax(rows), point)[0])

    start = parts.encode(prompt, merges)
    ids = parts.generate(next_logits, start, 80, choose, sizes.block_size)
    return str(parts.decode(ids, merges))


SAYS = {
    "zh": {
        "missing": "还差 {count} 题，才拼得起来：{names}",
        "start": "用你写的 {count} 个函数拼一个 GPT，训练 {steps} 步……",
        "end": "{count:,} 个参数，{seconds:.0f} 秒，损失 {first:.2f} → {last:.2f}。它写道：",
    },
    "en": {
        "missing": "{count} exercises are still to do before it fits together: {names}",
        "start": "A GPT of the {count} functions you wrote, training for {steps} steps …",
        "end": "{count:,} parameters, {seconds:.0f} s, loss {first:.2f} → {last:.2f}. It writes:",
    },
}


def build_and_train(folder: Path, language: str, sizes: Sizes | None = None) -> int:
    """`fromzero learn build`: 1 while something is missing."""
    sizes = sizes or Sizes()
    parts, missing = gather_parts(folder)
    says = SAYS[language]
    if missing:
        print(says["missing"].format(count=len(missing), names=", ".join(missing)))
        return 1
    print(says["start"].format(count=len(PARTS), steps=sizes.steps))
    built, _ = run_parts(parts, corpus_text(sizes.text), "import ", sizes, print)
    print(
        says["end"].format(
            count=built.n_parameters,
            seconds=built.seconds,
            first=built.first_loss,
            last=built.last_loss,
        )
    )
    print(built.text)
    return 0


def corpus_text(length: int) -> str:
    """The beginning of the corpus that comes with Python: its own documentation."""
    from training.corpus import load_corpus

    kept = ""
    for document in load_corpus("python-docs"):
        kept += document.text + "\n"
        if len(kept) >= length:
            break
    return kept[:length]
