"""Look-up tables, and sinusoidal positions against their definition."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from transformer_basics.embeddings import (
    LearnedPositions,
    SinusoidalPositions,
    TokenEmbedding,
    sinusoidal_table,
)


def test_token_embedding_is_a_product_with_one_hot_rows():
    embedding, ids = TokenEmbedding(7, 4), torch.tensor([[6, 0, 6], [1, 2, 3]])
    vectors = embedding(ids)
    assert vectors.shape == (2, 3, 4)
    torch.testing.assert_close(vectors, F.one_hot(ids, 7).float() @ embedding.weight)
    vectors[0].sum().backward()
    assert embedding.weight.grad[:, 0].tolist() == [1, 0, 0, 0, 0, 0, 2]


def test_initial_vectors_are_small():
    for module in (TokenEmbedding(2000, 32), LearnedPositions(2000, 32)):
        assert abs(float(module.weight.detach().std()) - 0.02) < 0.001


@given(st.integers(1, 12), st.integers(1, 9), st.sampled_from([10.0, 10000.0]))
def test_sinusoidal_table_by_definition(length, dim, base):
    table = sinusoidal_table(length, dim, base)
    assert table.shape == (length, dim)
    assert table.dtype == torch.float32
    for t in range(length):
        for column in range(dim):
            angle = t / base ** ((column - column % 2) / dim)
            expected = math.cos(angle) if column % 2 else math.sin(angle)
            assert abs(float(table[t, column]) - expected) < 1e-6


def test_far_positions_are_exact():
    """Angles computed in float32 would be off by thousandths of a radian here."""
    row = sinusoidal_table(123_458, 8)[-1]
    angles = [123_457 * 10000 ** (-2 * i / 8) for i in range(4)]
    expected = torch.tensor([f(a) for a in angles for f in (math.sin, math.cos)])
    torch.testing.assert_close(row, expected, atol=1e-6, rtol=0)


def test_distance_is_a_fixed_rotation():
    """One matrix takes P[t] to P[t + k] for every t: each (sin, cos) pair turns by k·ω."""
    table, k = sinusoidal_table(50, 16), 5
    blocks = []
    for i in range(8):
        angle = k / 10000 ** (2 * i / 16)
        cos, sin = math.cos(angle), math.sin(angle)
        blocks.append(torch.tensor([[cos, sin], [-sin, cos]]))
    matrix = torch.block_diag(*blocks)
    torch.testing.assert_close(table[:45] @ matrix.T, table[k:], atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", [LearnedPositions, SinusoidalPositions])
def test_positions_of_one_row_and_of_a_batch(kind):
    module = kind(10, 6)
    table = module.weight if kind is LearnedPositions else module.table
    assert torch.equal(module(torch.arange(3, 7)), table[3:7])
    positions = torch.tensor([[0, 0, 1], [4, 5, 9]])
    assert torch.equal(module(positions), table[positions])


@pytest.mark.parametrize("kind", [LearnedPositions, SinusoidalPositions])
@pytest.mark.parametrize(("positions", "shown"), [([0, 10], "0 to 10"), ([-1, 3], "-1 to 3")])
def test_positions_outside_name_the_limit(kind, positions, shown):
    with pytest.raises(ValueError, match=rf"< max_seq_len 10, got {shown}"):
        kind(10, 6)(torch.tensor(positions))


def test_sinusoids_have_no_state_and_follow_the_model():
    module = SinusoidalPositions(10, 6)
    assert module.state_dict() == {}
    assert list(module.parameters()) == []
    assert module.bfloat16()(torch.arange(3)).dtype == torch.bfloat16
    exact = module.float()(torch.arange(10))  # recomputed, not widened from bf16
    assert torch.equal(exact, sinusoidal_table(10, 6))


def test_sinusoids_survive_the_meta_device():
    expected = sinusoidal_table(10, 6)[:4]
    with torch.device("meta"):
        emptied, assigned = SinusoidalPositions(10, 6), SinusoidalPositions(10, 6)
    assert emptied.table.is_meta
    emptied.to_empty(device="cpu")
    for module in (emptied, assigned):  # the second never leaves meta: weights were assigned
        assert torch.equal(module(torch.arange(4)), expected)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TokenEmbedding(0, 4), r"vocab_size must be an integer >= 1, got 0"),
        (lambda: LearnedPositions(4, 0), r"dim must be an integer >= 1, got 0"),
        (lambda: SinusoidalPositions(0, 4), r"max_seq_len must be an integer >= 1, got 0"),
        (lambda: SinusoidalPositions(4, 4, base=1.0), r"base must be .* > 1.0, got 1.0"),
    ],
)
def test_construction_errors(build, message):
    with pytest.raises(ValueError, match=message):
        build()
