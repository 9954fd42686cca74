"""Draws follow the probabilities, and depend on nothing but the row's own random numbers."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from inference.drawing import draw
from inference.random_stream import RowRandom


@given(
    weights=st.lists(st.sampled_from([0.0, 1e-9, 0.3, 1.0, 5.0]), min_size=1, max_size=9).filter(
        lambda w: sum(w) > 0
    ),
    u=st.one_of(st.floats(0.0, 1.0, exclude_max=True), st.just(1 - 2**-53), st.just(0.0)),
)
def test_a_draw_lands_in_its_own_stretch(weights, u):
    token = int(draw(torch.tensor([weights]).log(), [u]))
    total = math.fsum(weights)
    below = math.fsum(weights[:token]) / total
    above = math.fsum(weights[: token + 1]) / total
    assert weights[token] > 0
    assert below - 1e-6 <= u <= above + 1e-6


def test_forbidden_tokens_are_never_drawn_at_the_very_ends():
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, 0.0, -math.inf]])
    assert int(draw(logits, [0.0])) == 1
    assert int(draw(logits, [0.5])) == 3
    assert int(draw(logits, [1 - 2**-53])) == 3


def test_rare_tokens_keep_their_chance():
    """float32 cannot tell 1 + 300e-10 from 1 + 301e-10: hundreds of tokens would never come."""
    logits = torch.full((1, 1001), math.log(1e-10))
    logits[0, 0] = 0.0
    for token in (1, 300, 777):
        u = (1 + (token - 0.5) * 1e-10) / (1 + 1000e-10)
        assert abs(int(draw(logits, [u])) - token) <= 1


def test_the_largest_random_number_always_finds_a_token():
    logits = torch.randn(5_000, 7) * 4
    logits[:, -1] = -math.inf
    drawn = draw(logits, torch.full((5_000,), 1 - 2**-53, dtype=torch.float64))
    assert logits.gather(1, drawn[:, None]).isfinite().all()
    assert drawn.min() > 0  # `argmax` of nothing but zeros would be 0


def test_frequencies_pass_a_chi_square_test():
    probabilities = torch.tensor([0.02, 0.28, 0.4, 0.0, 0.1, 0.2])
    source, n = RowRandom(seed=5), 20_000
    uniforms = torch.tensor([source.at(t) for t in range(n)])
    counts = torch.bincount(draw(probabilities.log().expand(n, 6), uniforms), minlength=6)
    expected = probabilities * n
    alive = expected > 0
    chi_square = ((counts - expected)[alive] ** 2 / expected[alive]).sum()
    assert counts[3] == 0
    assert chi_square < 20.5  # 0.1 % of honest draws exceed this with 4 degrees of freedom


def test_each_row_uses_its_own_number():
    logits = torch.zeros(4, 4)
    assert draw(logits, [0.1, 0.3, 0.6, 0.9]).tolist() == [0, 1, 2, 3]
    assert draw(logits, torch.tensor([0.9, 0.6, 0.3, 0.1])).tolist() == [3, 2, 1, 0]


def test_huge_scores_do_not_overflow():
    logits = torch.tensor([[3e38, 0.0, -3e38], [-3e38, -3e38, -3e38]])
    assert draw(logits, [0.99, 0.99]).tolist() == [0, 2]


def test_each_row_has_its_own_temperature():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).expand(3, 4)
    column = torch.tensor([[0.5], [1.0], [3.0]], dtype=torch.float64)
    for u in (0.05, 0.6, 0.9, 0.99):
        together = draw(logits, [u] * 3, column).tolist()
        assert together == [int(draw(logits[:1] / tau, [u])) for tau in (0.5, 1.0, 3.0)]
