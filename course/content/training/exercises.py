"""训练：一步的先后、评估、存档与续训、提前停、整个循环；六道。"""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course.exercise import Exercise

Batch = tuple[Tensor, Tensor]


class FixedDrop(nn.Module):
    """Like dropout, but always of the same entries, so that results can be compared."""

    keep: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("keep", 2.0 * (torch.arange(width) % 2))

    def forward(self, x: Tensor) -> Tensor:
        """Half of the entries, doubled; all of them outside of training."""
        return x * self.keep if self.training else x


class Tiny(nn.Module):
    """Guess the next token from one token; with a layer that drops and a running mean."""

    mean: Tensor

    def __init__(self, vocab: int, width: int, drop: nn.Module) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(vocab, width))
        self.drop = drop
        self.head = nn.Linear(width, vocab)
        self.register_buffer("mean", torch.zeros(width))

    def forward(self, ids: Tensor) -> Tensor:
        """Ids (n,) → logits (n, V)."""
        h = self.table[ids]
        if self.training:
            center = h.mean(0)
            self.mean.mul_(0.5).add_(0.5 * center.detach())
        else:
            center = self.mean
        logits: Tensor = self.head(torch.tanh(self.drop(h - center)))
        return logits


class Momentum:
    """SGD with momentum and weight decay, used as the optimizers of torch are."""

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        self.param_groups = groups
        self.state: dict[int, Tensor] = {}

    def parameters(self) -> list[Tensor]:
        """All parameters, in order."""
        return [p for group in self.param_groups for p in group["params"]]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        for p in self.parameters():
            p.grad = None if set_to_none or p.grad is None else torch.zeros_like(p.grad)

    @torch.no_grad()
    def step(self) -> None:
        """Move every parameter that has a gradient."""
        number = 0
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    buffer = self.state.setdefault(number, torch.zeros_like(p))
                    buffer.mul_(0.8).add_(p.grad)
                    p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * buffer)
                number += 1

    def state_dict(self) -> dict[str, Any]:
        """The live state, as in torch: whoever wants to keep it must copy it."""
        groups = [{k: v for k, v in g.items() if k != "params"} for g in self.param_groups]
        return {"state": dict(self.state), "param_groups": groups}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state."""
        self.state = {int(n): buffer.clone() for n, buffer in state["state"].items()}
        for group, saved in zip(self.param_groups, state["param_groups"], strict=True):
            group.update(saved)


def setting(case: int, drop: nn.Module | None = None) -> tuple[Tiny, Momentum]:
    """A model and its optimizer in two groups, only the first of which decays."""
    vocab, width = ((7, 4), (5, 6), (9, 4))[case]
    model = Tiny(vocab, width, drop or FixedDrop(width))
    groups = [
        {"params": [model.table, model.head.weight], "lr": 0.31, "weight_decay": 0.2},
        {"params": [model.head.bias], "lr": 0.27, "weight_decay": 0.0},
    ]
    return model, Momentum(groups)


def some_batches(model: Tiny, sizes: tuple[int, ...]) -> list[Batch]:
    """Batches of (ids, targets), of these sizes."""
    vocab = len(model.table)
    return [(torch.randint(vocab, (n,)), torch.randint(vocab, (n,))) for n in sizes]


def mean_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The mean cross-entropy of a batch."""
    return F.cross_entropy(model(batch[0]), batch[1])


def weights(model: nn.Module) -> Tensor:
    """All parameters as one vector."""
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def number(value: Any) -> Any:
    """A loss as a number, if it is one."""
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 else value


def holds_graph(value: Any) -> bool:
    """Does a result keep the graph, and so the activations, alive?"""
    return isinstance(value, Tensor) and value.requires_grad


def some_steps(random_: random.Random, case: int) -> dict[str, Any]:
    """A model left in evaluation mode, as evaluating leaves it, and a few batches."""
    model, optimizer = setting(case)
    return {
        "model": model,
        "optimizer": optimizer,
        "batches": some_batches(model, (5, 8, 6, 7)),
        "rates": [random_.uniform(0.05, 0.2) for _ in range(4)],
        "max_norm": random_.uniform(0.15, 0.25),
    }


def run_steps(answer: SimpleNamespace, inputs: dict[str, Any]) -> dict[str, Any]:
    """Four steps: each loss, then the weights after it."""
    model, graphs = inputs["model"], []
    seen: dict[str, Any] = {}
    for step, (batch, rate) in enumerate(zip(inputs["batches"], inputs["rates"], strict=True)):
        model.eval()
        loss = answer.train_step(
            model, mean_loss, batch, inputs["optimizer"], rate, inputs["max_norm"]
        )
        seen |= {f"loss_{step}": number(loss), f"weights_{step}": weights(model)}
        graphs.append(holds_graph(loss))
    return {**seen, "holds_graph": any(graphs)}


def held_out(random_: random.Random, case: int) -> dict[str, Any]:
    """A model in training, with a running mean of its own, and batches of unequal sizes."""
    model, _ = setting(case)
    model.mean.copy_(torch.randn_like(model.mean))
    return {"model": model, "batches": some_batches(model, (7, 2, 5))}


def run_evaluate(answer: SimpleNamespace, inputs: dict[str, Any]) -> dict[str, Any]:
    """The loss; was a graph built; is the model ready to go on training."""
    model, graphs = inputs["model"], []

    def loss_fn(model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        graphs.append(torch.is_grad_enabled())
        return F.cross_entropy(model(batch[0]), batch[1], reduction="sum"), len(batch[0])

    loss = answer.evaluate(model, loss_fn, inputs["batches"])
    return {"loss": number(loss), "builds_graph": any(graphs), "training": model.drop.training}


def interrupted(random_: random.Random, case: int) -> dict[str, Any]:
    """One training that is saved on its way, and a fresh model that is to go on from there."""
    model, optimizer = setting(case, nn.Dropout(0.4))
    fresh_model, fresh_optimizer = setting(case, nn.Dropout(0.4))
    return {
        "model": model,
        "optimizer": optimizer,
        "fresh_model": fresh_model,
        "fresh_optimizer": fresh_optimizer,
        "batches": some_batches(model, (5, 8, 6, 7, 9, 4, 3)),
        "position": random_.randint(1, 5),
        "seed": random_.randint(10, 99),
    }


def run_resume(answer: SimpleNamespace, inputs: dict[str, Any]) -> dict[str, Any]:
    """Train, save, train on; then load into the fresh model and train from there."""
    batches = inputs["batches"]

    def go_on(model: Tiny, optimizer: Momentum, step: int, position: int) -> list[float]:
        losses = []
        for _ in range(3):
            for group in optimizer.param_groups:
                group["lr"] = 0.3 / (1 + step)
            optimizer.zero_grad()
            loss = mean_loss(model, batches[position % len(batches)])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(loss.item())
            step, position = step + 1, position + 2
        return losses

    model, optimizer, position = inputs["model"], inputs["optimizer"], inputs["position"]
    torch.manual_seed(inputs["seed"])
    go_on(model, optimizer, 0, position)
    state = answer.save_state(model, optimizer, 3, position + 6)
    go_on(model, optimizer, 3, position + 6)
    model, optimizer = inputs["fresh_model"], inputs["fresh_optimizer"]
    step, position = answer.load_state(state, model, optimizer)
    seen = {
        "step": int(step),
        "position": int(position),
        "weights": weights(model),
        "buffers": torch.cat([b.flatten() for b in model.buffers()]),
        "moments": [optimizer.state[n].clone() for n in sorted(optimizer.state)],
        "random": torch.rand(3),
    }
    return {**seen, "losses": torch.tensor(go_on(model, optimizer, step, position))}


def rise_and_fall(random_: random.Random, case: int) -> dict[str, Any]:
    """Validation losses: better, worse, better again, worse; the very best comes too late."""
    path = (
        [5.0, 4.0, 4.5, 3.0, 3.5, 3.2, 3.1, 2.0],
        [6.0, 5.0, 5.5, 5.2, 4.0, 4.4, 4.6, 4.8, 4.5, 4.7, 4.9, 3.0],
        [3.0, 2.0, 2.5, 1.0, 1.5],
    )[case]
    return {
        "losses": [loss + random_.uniform(-0.02, 0.02) for loss in path],
        "max_epochs": len(path),
        "patience": (3, 3, 4)[case],
    }


def run_best(answer: SimpleNamespace, inputs: dict[str, Any]) -> dict[str, Any]:
    """How many epochs were trained, the best loss, the weights kept, the weights in the model."""
    model = nn.Linear(2, 1)
    epochs = [0]

    def train_epoch(model: nn.Module) -> None:
        epochs[0] += 1
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.full_like(p, float(epochs[0])))

    def validate(model: nn.Module) -> float:
        losses: list[float] = inputs["losses"]
        return losses[epochs[0] - 1]

    loss, kept = answer.train_until_best(
        model, train_epoch, validate, inputs["max_epochs"], inputs["patience"]
    )
    return {
        "epochs": epochs[0],
        "best_loss": number(loss),
        "kept": {name: tensor.clone() for name, tensor in kept.items()},
        "weights": weights(model),
    }


def whole_training(random_: random.Random, case: int) -> dict[str, Any]:
    """More steps than batches, one of which is broken; the model comes in evaluation mode."""
    model, optimizer = setting(case)
    model.eval()
    return {
        "model": model,
        "optimizer": optimizer,
        "batches": tuple(some_batches(model, (5, 8, 6))),
        "broken": 2 - case,
        "steps": 5,
        "rates": [random_.uniform(0.05, 0.2) for _ in range(8)],
        "max_norm": random_.uniform(0.15, 0.25),
    }


def run_train(answer: SimpleNamespace, inputs: dict[str, Any]) -> dict[str, Any]:
    """The loss of every step, then the weights."""
    batches, broken = inputs["batches"], inputs["batches"][inputs["broken"]]

    def loss_fn(model: nn.Module, batch: Batch) -> Tensor:
        loss = mean_loss(model, batch)
        return loss * float("nan") if batch is broken else loss

    losses = answer.train(
        inputs["model"], loss_fn, batches, inputs["steps"], inputs["optimizer"],
        lambda step: inputs["rates"][step], inputs["max_norm"],
    )  # fmt: skip
    graph = any(map(holds_graph, losses))
    numbers = torch.tensor([float(number(loss)) for loss in losses])
    return {"losses": numbers, "weights": weights(inputs["model"]), "holds_graph": graph}


def nothing(random_: random.Random, case: int) -> dict[str, Any]:
    """No inputs: the file holds answers."""
    return {}


MARK = ("week8-training",)

EXERCISES = (
    Exercise("training.01", 8, ("train_step",), some_steps, run_steps, cases=2, checkpoint=MARK),
    Exercise("training.02", 8, ("evaluate",), held_out, run_evaluate, checkpoint=MARK),
    Exercise(
        "training.03", 8,
        ("tokens_per_step", "steps_per_epoch", "first_loss", "first_perplexity", "training_flops"),
        nothing, kind="predict", cases=1, tolerance=1e-3,
    ),
    Exercise(
        "training.04", 8, ("save_state", "load_state"), interrupted, run_resume, cases=2,
        checkpoint=MARK,
    ),
    Exercise(
        "training.05", 8, ("train_until_best",), rise_and_fall, run_best, kind="repair",
        starts_with="CKPT-01",
    ),
    Exercise("training.06", 8, ("train",), whole_training, run_train, cases=2, checkpoint=MARK),
)  # fmt: skip
