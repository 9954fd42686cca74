"""Draws follow the probabilities, and depend on nothing but the row's own luck."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inference import drawing
from inference.drawing import draw, laid_out
from inference.random_stream import RowRandom, uniforms

keys_of = st.integers(-(2**63), 2**63 - 1)


@given(
    weights=st.lists(st.sampled_from([0.0, 1e-9, 0.3, 1.0, 5.0]), min_size=1, max_size=9).filter(
        lambda w: sum(w) > 0
    ),
    key=keys_of,
    tau=st.sampled_from([0.3, 1.0, 2.0]),
)
def test_the_first_to_arrive_is_drawn(weights, key, tau):
    token = int(draw(torch.tensor([weights]).log(), [key], tau))
    luck = uniforms(torch.tensor([[key]]), torch.arange(len(weights)))[0].tolist()
    times = [
        -math.log(u) / (w / max(weights)) ** (1 / tau) if w else math.inf
        for u, w in zip(luck, weights, strict=True)
    ]
    assert weights[token] > 0
    assert times[token] <= min(times) * (1 + 1e-5)


def many(logits, n, seed=5, tau=1.0):
    source = RowRandom(seed)
    return draw(logits.expand(n, -1), [source.at(t) for t in range(n)], tau)


def test_forbidden_tokens_are_never_drawn():
    drawn = many(torch.tensor([[-math.inf, 0.0, -math.inf, 0.0, -math.inf]]), 5_000)
    assert set(drawn.tolist()) == {1, 3}


def test_rare_tokens_keep_their_chance():
    """A thousand tokens of 1e-4 each beside one of 0.9: a tenth of the draws, all over them."""
    logits = torch.full((1, 1001), math.log(1e-4))
    logits[0, 0] = math.log(0.9)
    drawn = many(logits, 20_000)
    rare = drawn[drawn > 0]
    assert abs(len(rare) / 20_000 - 0.1) < 0.01
    assert len(rare.unique()) > 800


def test_a_token_of_one_in_a_billion_is_told_from_none():
    """In float32 the luck of 1 − 1e-9 is 1, its logarithm 0, and such a token always wins."""
    logits = torch.tensor([[0.0, math.log(1e-9)]])
    assert int(many(logits, 50_000).sum()) <= 1


@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
def test_frequencies_pass_a_chi_square_test(tau):
    probabilities, n = torch.tensor([0.02, 0.28, 0.4, 0.0, 0.1, 0.2]), 20_000
    counts = torch.bincount(many(probabilities.log()[None], n, tau=tau), minlength=6)
    expected = (probabilities.log() / tau).softmax(-1) * n
    alive = expected > 0
    chi_square = ((counts - expected)[alive] ** 2 / expected[alive]).sum()
    assert counts[3] == 0
    assert chi_square < 20.5  # 0.1 % of honest draws exceed this with 4 degrees of freedom


def test_tokens_are_drawn_in_any_order_of_the_columns():
    """Luck goes with the id: a few columns, shuffled, draw what the whole row draws."""
    logits = torch.randn(6, 40) * 2
    keys = [RowRandom(1).at(t) for t in range(6)]
    whole = draw(logits, keys)
    ids = torch.stack([torch.randperm(40) for _ in range(6)])
    places = draw(logits.gather(1, ids), keys, ids=ids)
    assert torch.equal(ids.gather(1, places[:, None])[:, 0], whole)


def test_a_wide_vocabulary_is_drawn_row_by_row_to_the_same_end(monkeypatch):
    logits, keys = torch.randn(5, 300), list(range(5))
    column = torch.linspace(0.5, 2, 5, dtype=torch.float64)[:, None]
    ids = torch.randint(1_000, (5, 300))
    together = [draw(logits, keys), draw(logits, keys, column), draw(logits, keys, column, ids)]
    monkeypatch.setattr(drawing, "WIDE", 10)
    apart = [draw(logits, keys), draw(logits, keys, column), draw(logits, keys, column, ids)]
    for left, right in zip(together, apart, strict=True):
        assert torch.equal(left, right)
    for row in range(5):
        assert int(draw(logits[row : row + 1], keys[row : row + 1])) == int(together[0][row])


def test_huge_scores_do_not_overflow():
    logits = torch.tensor([[3e38, 0.0, -3e38], [-3e38, -3e38, -3e38]])
    drawn = [draw(logits, [key, key]).tolist() for key in range(50)]
    assert {first for first, _ in drawn} == {0}
    assert {second for _, second in drawn} == {0, 1, 2}


def test_each_row_has_its_own_temperature():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).expand(3, 4)
    column = torch.tensor([[0.5], [1.0], [3.0]], dtype=torch.float64)
    for key in range(30):
        together = draw(logits, [key] * 3, column).tolist()
        assert together == [int(draw(logits[:1], [key], tau)) for tau in (0.5, 1.0, 3.0)]


@given(
    weights=st.lists(st.sampled_from([0.0, 1e-9, 0.3, 1.0, 5.0]), min_size=1, max_size=9).filter(
        lambda w: sum(w) > 0
    ),
    u=st.one_of(st.floats(0.0, 1.0, exclude_max=True), st.just(1 - 2**-53), st.just(0.0)),
)
def test_laid_out_it_lands_in_its_own_stretch(weights, u):
    token = int(laid_out(torch.tensor([weights]).log(), [u]))
    total = math.fsum(weights)
    assert weights[token] > 0
    assert math.fsum(weights[:token]) / total - 1e-6 <= u
    assert u <= math.fsum(weights[: token + 1]) / total + 1e-6
