"""学习率：预热、余弦、写进优化器；四道。"""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import torch

from course.exercise import Exercise


def warmup(random_: random.Random, case: int) -> dict[str, Any]:
    """A warm-up of a few steps, seen a little beyond its end."""
    steps = (4, 7, 11)[case]
    return {"max_rate": random_.uniform(1e-3, 9e-3), "warmup_steps": steps}


def run_warmup(answer: SimpleNamespace, inputs: dict[str, Any]) -> dict[str, Any]:
    """The rate at every step, as one curve."""
    steps = range(inputs["warmup_steps"] + 5)
    return {"rates": torch.tensor([float(answer.warmup_rate(step, **inputs)) for step in steps])}


def curve(random_: random.Random, case: int) -> dict[str, Any]:
    """A whole training, and some steps after its end."""
    max_rate = random_.uniform(1e-3, 9e-3)
    return {
        "max_rate": max_rate,
        "min_rate": max_rate * random_.uniform(0.1, 0.3),
        "warmup_steps": (3, 5, 8)[case],
        "total_steps": (20, 17, 31)[case],
    }


def run_curve(answer: SimpleNamespace, inputs: dict[str, Any]) -> dict[str, Any]:
    """The rate at every step, as one curve; `beyond` is what comes after the last update."""
    total = inputs["total_steps"]
    rates = [float(answer.learning_rate(step, **inputs)) for step in range(total + 6)]
    return {"rates": torch.tensor(rates[:total]), "beyond": torch.tensor(rates[total:])}


def groups(random_: random.Random, case: int) -> dict[str, Any]:
    """An optimizer's groups, some with a factor of their own, and a rate for each step."""
    made: list[dict[str, float]] = [{"lr": 0.5 + number} for number in range(2 + case)]
    made[1]["scale"] = random_.uniform(2.0, 5.0)
    if case == 2:
        made[3]["scale"] = random_.uniform(0.1, 0.5)
    return {"groups": made, "rates": [random_.uniform(0.01, 0.09) for _ in range(4)]}


def run_groups(answer: SimpleNamespace, inputs: dict[str, Any]) -> dict[str, Any]:
    """What every group has after each step."""
    mine = [dict(group) for group in inputs["groups"]]
    seen = []
    for rate in inputs["rates"]:
        answer.set_learning_rate(mine, rate)
        seen.append([float(group["lr"]) for group in mine])
    return {"lr": torch.tensor(seen)}


def nothing(random_: random.Random, case: int) -> dict[str, Any]:
    """No inputs: the file holds answers."""
    return {}


EXERCISES = (
    Exercise("schedule.01", 7, ("warmup_rate",), warmup, run_warmup),
    Exercise("schedule.02", 7, ("learning_rate",), curve, run_curve),
    Exercise(
        "schedule.03", 7,
        ("updates", "first_rate", "top_step", "middle_rate", "last_rate"),
        nothing, kind="predict", cases=1,
    ),
    Exercise(
        "schedule.04", 7, ("set_learning_rate",), groups, run_groups, kind="repair",
        starts_with="SCHED-18",
    ),
)  # fmt: skip
