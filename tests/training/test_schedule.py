import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.schedule import SCHEDULES, learning_rate

USUAL = {"max_lr": 1e-3, "min_lr": 1e-4, "warmup_steps": 10, "total_steps": 100, "decay_steps": 20}


def curve(kind, **changes):
    values = {**USUAL, **changes}
    return [learning_rate(step, kind=kind, **values) for step in range(values["total_steps"])]


@pytest.mark.parametrize("kind", SCHEDULES)
def test_the_first_update_moves_and_warmup_ends_at_the_top(kind):
    rates = curve(kind)
    assert rates[0] == 1e-3 / 11
    assert rates[9] == 1e-3 * 10 / 11
    assert rates[10] == 1e-3
    assert max(rates) == 1e-3


def test_the_last_update_has_exactly_the_lowest_rate():
    assert curve("cosine")[-1] == 1e-4
    assert curve("wsd")[-1] == 1e-4
    assert curve("constant")[-1] == 1e-3


def test_cosine_by_hand():
    # update 10 begins, update 99 ends: 89 intervals
    for step in (11, 40, 54, 98):
        progress = (step - 10) / 89
        expected = 1e-4 + 0.5 * 9e-4 * (1 + math.cos(math.pi * progress))
        assert learning_rate(step, kind="cosine", **USUAL) == pytest.approx(expected, rel=1e-12)


def test_wsd_by_hand():
    rates = curve("wsd")
    assert rates[10:80] == [1e-3] * 70  # the plateau
    steps = [before - after for before, after in zip(rates[79:-1], rates[80:], strict=True)]
    assert steps == pytest.approx([9e-4 / 20] * 20)


def test_beyond_the_end_the_rate_stays():
    for kind in SCHEDULES:
        end = learning_rate(99, kind=kind, **USUAL)
        assert learning_rate(100, kind=kind, **USUAL) == end
        assert learning_rate(10_000, kind=kind, **USUAL) == end


@given(
    kind=st.sampled_from(sorted(SCHEDULES)),
    total=st.integers(1, 300),
    data=st.data(),
)
def test_always_within_bounds_and_falling_after_the_warmup(kind, total, data):
    warmup = data.draw(st.integers(0, total - 1))
    decay = data.draw(st.integers(0, total - warmup))
    rates = curve(kind, total_steps=total, warmup_steps=warmup, decay_steps=decay)
    assert all(0 < rate <= 1e-3 for rate in rates)
    assert all(rate >= 1e-4 for rate in rates[warmup:])
    rising = rates[:warmup]
    assert rising == sorted(rising)
    rest = rates[warmup:]
    assert all(after <= before for before, after in zip(rest[:-1], rest[1:], strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "cosin"}, "schedule must be one of cosine, wsd, constant.*did you mean 'cosine'"),
        ({"max_lr": math.nan}, "max_lr must be a finite number > 0, got nan"),
        ({"max_lr": -1.0}, "max_lr must be a finite number > 0, got -1.0"),
        ({"max_lr": 1e999}, "got inf"),
        ({"min_lr": 2e-3}, "min_lr must be a finite number >= 0 and <= 0.001, got 0.002"),
        ({"warmup_steps": 100}, "warmup_steps must be an integer >= 0 and <= 99, got 100"),
        ({"step": -1}, "step must be an integer >= 0, got -1"),
        ({"kind": "wsd", "decay_steps": 91}, "warmup_steps 10 . decay_steps 91 exceed .* 100"),
    ],
)
def test_unreasonable_values_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        learning_rate(**{"step": 0, "kind": "cosine", **USUAL, **changes})
