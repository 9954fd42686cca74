"""优化：裁剪、AdamW、梯度累积、fp16 的损失放大；六道。"""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from course.exercise import Exercise

SHAPES = ((4, 3), (2, 5), (6,))


def flat(tensors: list[Tensor]) -> Tensor:
    """Several tensors as one long vector."""
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def long_and_short(random_: random.Random, case: int) -> dict[str, Any]:
    """Gradients of three parameters, longer than max_norm, then shorter, then much longer."""
    gradients = [(2.0 + place) * torch.randn(shape) for place, shape in enumerate(SHAPES)]
    norm = float(flat(gradients).norm())
    share = (random_.uniform(0.2, 0.4), random_.uniform(1.5, 2.5), random_.uniform(0.03, 0.06))
    return {"gradients": gradients, "max_norm": norm * share[case]}


def run_clip(answer: SimpleNamespace, inputs: dict[str, Any]) -> dict[str, Any]:
    """The norm first, then the gradients as one vector, with their shapes."""
    clipped, norm = answer.clip_gradients(**inputs)
    shapes = [list(gradient.shape) for gradient in clipped]
    return {"norm": float(norm), "clipped": flat(clipped), "shapes": shapes}


def three_steps(random_: random.Random, case: int) -> dict[str, Any]:
    """A parameter and three gradients; the last case goes on from step 6."""
    shape = ((4, 3), (2, 5), (6, 2))[case]
    sizes = 10.0 ** torch.linspace(-1.5, 0.5, shape[1])  # each column has a ruler of its own
    state = {"m": torch.zeros(shape), "v": torch.zeros(shape)}
    if case == 2:
        state = {"m": sizes * torch.randn(shape), "v": (sizes * torch.randn(shape)) ** 2}
    return {
        "parameter": torch.randn(shape) + 2.0,
        **state,
        "gradients": [sizes * (torch.randn(shape) + 0.5) for _ in range(3)],
        "first_step": 6 if case == 2 else 1,
        "lr": random_.uniform(0.1, 0.2),
        "beta1": random_.uniform(0.7, 0.8),
        "beta2": random_.uniform(0.9, 0.95),
        "eps": random_.uniform(0.05, 0.08),  # large enough to be seen
        "weight_decay": random_.uniform(0.3, 0.5),
    }


def run_adamw(answer: SimpleNamespace, inputs: dict[str, Any]) -> dict[str, Any]:
    """Three steps, each with what the one before gave back."""
    settings = {name: inputs[name] for name in ("lr", "beta1", "beta2", "eps", "weight_decay")}
    parameter, m, v = inputs["parameter"], inputs["m"], inputs["v"]
    seen: dict[str, Any] = {}
    for number, gradient in enumerate(inputs["gradients"]):
        step = inputs["first_step"] + number
        parameter, m, v = answer.adamw_step(parameter, gradient, m, v, step, **settings)
        seen |= {f"m_{number}": m, f"v_{number}": v, f"parameter_{number}": parameter}
    return seen


def micro_batches(random_: random.Random, case: int) -> dict[str, Any]:
    """A linear model, micro-batches of different sizes; old gradients are still there."""
    width = (3, 4, 2)[case]
    weight, bias = torch.randn(width, requires_grad=True), torch.randn((), requires_grad=True)
    sizes = ((5, 1, 3), (2, 7), (4, 1, 6, 2))[case]
    batches = [(torch.randn(n, width), torch.randn(n) + 2.0) for n in sizes]
    if case:
        weight.grad, bias.grad = 9.0 * torch.randn(width), torch.randn(())

    def model_loss(micro_batch: tuple[Tensor, Tensor]) -> tuple[Tensor, int]:
        x, y = micro_batch
        return ((x @ weight + bias - y) ** 2).sum(), len(y)

    return {"model_loss": model_loss, "micro_batches": batches, "parameters": [weight, bias]}


def run_accumulate(answer: SimpleNamespace, inputs: dict[str, Any]) -> dict[str, Any]:
    """The mean loss, and the gradients as one vector."""
    loss, gradients = answer.accumulate(**inputs)
    loss = loss.item() if isinstance(loss, Tensor) else loss
    return {"loss": float(loss), "gradients": flat(list(gradients))}


def overflows(random_: random.Random, case: int) -> dict[str, Any]:
    """Which steps overflow: a few, with quiet stretches longer than the interval between them."""
    interval = (3, 4, 2)[case]
    quiet = (interval - 1, 2 * interval + 1, interval + random_.randint(1, 2))
    steps = [overflowed for n in quiet for overflowed in [False] * n + [True]]
    return {"scale": 2.0 ** random_.randint(9, 12), "overflowed": steps, "interval": interval}


def run_scale(answer: SimpleNamespace, inputs: dict[str, Any]) -> dict[str, Any]:
    """The scale after every step, and the count of good steps."""
    scale, good = inputs["scale"], 0
    scales, counts = [], []
    for overflowed in inputs["overflowed"]:
        scale, good = answer.next_scale(scale, good, overflowed, inputs["interval"])
        scales.append(float(scale))
        counts.append(int(good))
    return {"scale": torch.tensor(scales), "good_steps": counts}


def scaled_gradients(random_: random.Random, case: int) -> dict[str, Any]:
    """Gradients of a loss that was multiplied by `scale`.

    Cases: long; inf in the first tensor; inf in the last; NaN in the first; short; short enough to
    need no clipping even if it was never unscaled, or scaled once more.
    """
    scale = 2.0 ** random_.randint(4, 7)
    gradients = [scale * (1.0 + place) * torch.randn(s) for place, s in enumerate(SHAPES)]
    norm = float(flat(gradients).norm()) / scale
    share = {4: random_.uniform(1.5, 2.5), 5: 2.0 * scale**2}.get(case, random_.uniform(0.3, 0.6))
    if case in (1, 3):
        gradients[0][random_.randrange(4), 1] = float("inf" if case == 1 else "nan")
    if case == 2:
        gradients[2][random_.randrange(6)] = float("-inf")
    return {
        "parameters": [torch.randn(shape) for shape in SHAPES],
        "gradients": gradients,
        "scale": scale,
        "max_norm": norm * share,
        "lr": random_.uniform(0.1, 0.3),
    }


def run_scaled(answer: SimpleNamespace, inputs: dict[str, Any]) -> dict[str, Any]:
    """Was the step skipped, and the parameters as one vector."""
    parameters, skipped = answer.scaled_update(**inputs)
    return {"skipped": bool(skipped), "parameters": flat(list(parameters))}


def nothing(random_: random.Random, case: int) -> dict[str, Any]:
    """No inputs: the file holds answers."""
    return {}


MARK = ("week7-optimizer",)

EXERCISES = (
    Exercise(
        "optimization.01", 7, ("clip_gradients",), long_and_short, run_clip,
        forbidden=("clip_grad_norm_", "clip_grad_value_", "get_total_norm"), checkpoint=MARK,
    ),
    Exercise(
        "optimization.02", 7, ("adamw_step",), three_steps, run_adamw,
        forbidden=("AdamW", "Adam"), checkpoint=MARK,
    ),
    Exercise(
        "optimization.03", 7,
        ("weights_mb", "optimizer_mb", "total_mb", "sgd_mb", "lora_mb"),
        nothing, kind="predict", cases=1,
    ),
    Exercise(
        "optimization.04", 7, ("accumulate",), micro_batches, run_accumulate, checkpoint=MARK,
    ),
    Exercise("optimization.05", 7, ("next_scale",), overflows, run_scale),
    Exercise(
        "optimization.06", 7, ("scaled_update",), scaled_gradients, run_scaled, kind="repair",
        cases=6, starts_with="AMP-09", checkpoint=MARK,
    ),
)  # fmt: skip
