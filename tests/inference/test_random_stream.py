"""Philox is numpy's, bit for bit; a number depends on seed, sample and position, nothing else."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inference.random_stream import RowRandom, philox

words = st.integers(0, 2**64 - 1)


@given(counter=st.tuples(words, words, words, words), key=st.tuples(words, words))
def test_philox_is_numpys(counter, key):
    generator = np.random.Philox(
        counter=np.array(counter, dtype=np.uint64), key=np.array(key, dtype=np.uint64)
    )
    # numpy adds one to the 256-bit counter before the first block
    whole = (sum(word << (64 * place) for place, word in enumerate(counter)) + 1) % 2**256
    moved = tuple((whole >> (64 * place)) % 2**64 for place in range(4))
    assert [int(word) for word in generator.random_raw(4)] == list(philox(moved, key))


@given(
    seed=st.integers(-(2**70), 2**70),
    positions=st.lists(st.integers(0, 40), min_size=1, max_size=9),
)
def test_any_order_any_number_of_times(seed, positions):
    source = RowRandom(seed, 1)
    found = [source.at(position) for position in positions]
    assert found == [RowRandom(seed, 1).at(position) for position in positions]
    assert all(0.0 <= u < 1.0 for u in found)


def test_the_global_generator_plays_no_part():
    torch.manual_seed(1)
    before = RowRandom(3).at(5)
    torch.manual_seed(2)
    assert RowRandom(3).at(5) == before


def chi_square(values, n_bins):
    counts = np.bincount((np.array(values) * n_bins).astype(int), minlength=n_bins)
    expected = len(values) / n_bins
    return float(((counts - expected) ** 2 / expected).sum())


def limit(degrees):
    """About one honest sample in 100,000 exceeds it (Wilson and Hilferty)."""
    return degrees * (1 - 2 / (9 * degrees) + 4.26 * math.sqrt(2 / (9 * degrees))) ** 3


@pytest.mark.parametrize(
    "values",
    [
        [RowRandom(0).at(t) for t in range(30_000)],
        [RowRandom(seed).at(0) for seed in range(30_000)],
        [RowRandom(9, sample).at(7) for sample in range(30_000)],
        # the low bits of the 53
        [math.modf(RowRandom(1).at(t) * 2**40)[0] for t in range(30_000)],
    ],
    ids=["positions", "seeds", "samples", "low bits"],
)
def test_numbers_are_uniform(values):
    assert chi_square(values, 256) < limit(255)


@pytest.mark.parametrize("lag", [1, 2, 4, 64])
def test_pairs_fill_the_square(lag):
    values = np.array([RowRandom(5).at(t) for t in range(30_000 + lag)])
    first, second = values[:-lag], values[lag:]
    cells = (np.floor(first * 16) * 16 + np.floor(second * 16)) / 256
    assert chi_square(cells, 256) < limit(255)


@pytest.mark.parametrize("other", [(4, 1), (3, 2), (3 + 2**32, 1), (-3, 1), (31, 0)])
def test_neighbouring_seeds_give_unrelated_numbers(other):
    """torch's own seeding looks at 32 bits only; ours must not."""
    left, right = RowRandom(3, 1), RowRandom(*other)
    pairs = torch.tensor([(left.at(t), right.at(t)) for t in range(500)], dtype=torch.float64)
    assert abs(float(torch.corrcoef(pairs.T)[0, 1])) < 0.2
