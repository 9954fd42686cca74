"""The law against hand-made numbers, its optimum against a search, its fit against the truth."""

import dataclasses
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.scaling_law import CHINCHILLA, LAWS, REPLICATION, ScalingLaw, fit_scaling_law

LAW = st.builds(
    ScalingLaw,
    E=st.floats(0.5, 3),
    A=st.floats(10, 3000),
    alpha=st.floats(0.15, 0.7),
    B=st.floats(10, 3000),
    beta=st.floats(0.15, 0.7),
)
COMPUTE = st.floats(15, 27).map(lambda exponent: 10**exponent)


def grid(law, sizes=(1e6, 1e7, 1e8, 1e9), tokens=(1e8, 1e9, 1e10, 1e11)):
    return [(n, d, law.loss(n, d)) for n in sizes for d in tokens]


def test_the_loss_by_hand():
    # powers that can be taken in the head: (1e8)^½ = 1e4, (1e9)^⅓ = 1e3
    law = ScalingLaw(E=2.0, A=5e3, alpha=0.5, B=3e2, beta=1 / 3)
    assert law.loss(1e8, 1e9) == pytest.approx(2.0 + 0.5 + 0.3)
    assert law.loss(1e100, 1e100) == pytest.approx(2.0)


def test_the_published_constants():
    assert dataclasses.astuple(CHINCHILLA) == (1.69, 406.4, 0.34, 410.7, 0.28)
    assert dataclasses.astuple(REPLICATION) == (1.8172, 482.01, 0.3478, 2085.43, 0.3658)
    assert list(LAWS) == ["chinchilla", "replication"]
    # Both describe the same 70B model: they differ in the parts, hardly in the sum
    assert CHINCHILLA.loss(70e9, 1.4e12) == pytest.approx(1.94, abs=0.005)
    assert REPLICATION.loss(70e9, 1.4e12) == pytest.approx(1.97, abs=0.005)


@given(LAW, COMPUTE)
def test_the_optimum_spends_the_budget_and_no_other_split_is_better(law, compute):
    n, d = law.optimal(compute)
    assert 6 * n * d == pytest.approx(compute)
    for times in (0.1, 0.5, 0.9, 1.1, 2, 10):
        assert law.loss(n, d) <= law.loss(n * times, d / times) * (1 + 1e-12)
    # both terms gain equally from the last operation
    gains = law.alpha * law.A / n**law.alpha, law.beta * law.B / d**law.beta
    assert gains[0] == pytest.approx(gains[1])


def test_the_optimum_found_by_search():
    compute = 1e21
    candidates = [10 ** (6 + k / 1000) for k in range(6000)]
    best = min(candidates, key=lambda n: REPLICATION.loss(n, compute / 6 / n))
    assert REPLICATION.optimal(compute)[0] == pytest.approx(best, rel=3e-3)


@settings(max_examples=8, deadline=None)
@given(LAW)
def test_a_fit_to_points_without_noise_is_the_law(law):
    fitted = fit_scaling_law(grid(law))
    for n, d in ((3e6, 3e8), (1e8, 1e10), (1e10, 1e12)):
        assert fitted.loss(n, d) == pytest.approx(law.loss(n, d), rel=2e-3)


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_a_fit_recovers_the_constants(law):
    fitted = fit_scaling_law(grid(law))
    for name, value in dataclasses.asdict(law).items():
        assert getattr(fitted, name) == pytest.approx(value, rel=0.01), name


def test_noise_of_half_a_percent_hardly_moves_the_exponents():
    noisy = random.Random(1)
    sizes = [10 ** (6 + k / 2) for k in range(8)]
    tokens = [10 ** (8 + k / 2) for k in range(8)]
    points = [
        (n, d, loss * math.exp(noisy.gauss(0, 0.005)))
        for n, d, loss in grid(REPLICATION, sizes, tokens)
    ]
    fitted = fit_scaling_law(points)
    assert fitted.alpha == pytest.approx(REPLICATION.alpha, abs=0.03)
    assert fitted.beta == pytest.approx(REPLICATION.beta, abs=0.03)
    assert fitted.loss(1e11, 1e13) == pytest.approx(REPLICATION.loss(1e11, 1e13), rel=0.03)


def test_one_run_that_went_wrong_is_outvoted():
    points = grid(CHINCHILLA)
    points[5] = (*points[5][:2], 1.5 * points[5][2])
    fitted = fit_scaling_law(points)
    assert fitted.loss(1e10, 1e12) == pytest.approx(CHINCHILLA.loss(1e10, 1e12), rel=0.01)


def test_small_models_on_few_tokens_can_be_fitted_too():
    """What a laptop can train in an afternoon: other units, other constants."""
    law = ScalingLaw(E=0.9, A=40.0, alpha=0.4, B=900.0, beta=0.5)
    points = grid(law, (2e4, 8e4, 3e5, 1e6), (2e5, 1e6, 5e6))
    fitted = fit_scaling_law(points)
    assert fitted.loss(4e6, 2e7) == pytest.approx(law.loss(4e6, 2e7), rel=5e-3)


def test_neither_the_order_nor_whole_numbers_matter():
    points = grid(CHINCHILLA)
    first = fit_scaling_law(points)
    second = fit_scaling_law([(int(n), int(d), loss) for n, d, loss in reversed(points)])
    assert dataclasses.astuple(first) == pytest.approx(dataclasses.astuple(second), rel=1e-3)


def test_points_that_determine_nothing_are_refused():
    points = grid(CHINCHILLA)
    with pytest.raises(ValueError, match="at least 5 points, got 4"):
        fit_scaling_law(points[:4])
    with pytest.raises(ValueError, match="at least 3 different model sizes n, got 2"):
        fit_scaling_law(grid(CHINCHILLA, (1e6, 1e7)))
    with pytest.raises(ValueError, match="at least 3 different numbers of tokens d, got 2"):
        fit_scaling_law(grid(CHINCHILLA, tokens=(1e8, 1e9)))
    with pytest.raises(ValueError, match=r"loss must be .* > 0, got -1\.0"):
        fit_scaling_law([*points, (1e6, 1e9, -1.0)])
    with pytest.raises(ValueError, match="loss must be a finite number"):
        fit_scaling_law([*points, (1e6, 1e9, math.nan)])


def test_constants_and_sizes_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"alpha must be .* > 0\.0, got 0\.0"):
        ScalingLaw(E=1.0, A=1.0, alpha=0.0, B=1.0, beta=0.3)
    assert ScalingLaw(E=0.0, A=1.0, alpha=0.3, B=1.0, beta=0.3).loss(1, 1) == 2
    with pytest.raises(ValueError, match=r"n must be .* > 0, got 0"):
        CHINCHILLA.loss(0, 1e9)
    with pytest.raises(ValueError, match="compute must be a finite number"):
        CHINCHILLA.optimal(math.inf)
