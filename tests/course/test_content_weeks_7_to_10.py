"""The reference solutions of weeks 7 to 10 against this repository's own functions, and torch's."""

import random
from types import SimpleNamespace

import pytest
import torch

from course.exercise import find, without_marks
from training.schedule import learning_rate


def solution(name):
    space = {"__name__": "answer"}
    exec(compile(without_marks(find(name).solution), name, "exec"), space)
    return SimpleNamespace(**space)


@pytest.fixture(autouse=True)
def double_precision():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(7)
    yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize(("warmup", "total"), [(0, 9), (3, 20), (7, 8 + 1)])
def test_the_schedule_is_ours(warmup, total):
    first, second = solution("schedule.01"), solution("schedule.02")
    for step in range(total + 5):
        ours = learning_rate(
            step,
            kind="cosine",
            max_lr=3e-3,
            min_lr=4e-4,
            warmup_steps=warmup,
            total_steps=total,
            decay_steps=0,
        )
        theirs = second.learning_rate(step, 3e-3, 4e-4, warmup, total)
        assert theirs == pytest.approx(ours, rel=1e-12)
        if step <= warmup:
            assert first.warmup_rate(step, 3e-3, warmup) == pytest.approx(ours, rel=1e-12)


def test_the_predicted_rates_are_those_of_our_schedule():
    answer = solution("schedule.03")
    settings = {"kind": "cosine", "max_lr": 1e-3, "min_lr": 2e-4, "warmup_steps": 9}
    rates = [
        learning_rate(step, total_steps=answer.updates, decay_steps=0, **settings)
        for step in range(answer.updates)
    ]
    assert answer.first_rate == pytest.approx(rates[0])
    assert answer.top_step == rates.index(max(rates))
    assert answer.middle_rate == pytest.approx(rates[(9 + answer.updates - 1) // 2])
    assert (9 + answer.updates - 1) % 2 == 0
    assert answer.last_rate == pytest.approx(rates[-1])


def test_groups_get_the_rate_that_our_optimizer_gives_them():
    from training.optimizer import set_learning_rate

    generator = random.Random(3)
    mine = [{"lr": 1.0}, {"lr": 2.0, "scale": 3.0}]
    ours = SimpleNamespace(param_groups=[{"lr": 1.0}, {"lr": 2.0, "lr_scale": 3.0}])
    for _ in range(3):
        rate = generator.random()
        solution("schedule.04").set_learning_rate(mine, rate)
        set_learning_rate(ours, rate)
        assert [g["lr"] for g in mine] == [g["lr"] for g in ours.param_groups]
