"""Philox is numpy's and SplitMix the published one, bit for bit; numbers depend on nothing else."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inference.random_stream import RowRandom, philox, uniforms

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
    assert all(-(2**63) <= key < 2**63 for key in found)


def splitmix(state, n):
    """Steele, Lea and Flood's generator in Python's integers; the outputs 0 … n − 1."""
    mask, found = 2**64 - 1, []
    for _ in range(n):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        found.append(z ^ (z >> 31))
    return found


def test_the_reference_is_the_published_generator():
    assert splitmix(1234567, 3) == [
        *(6457827717110365317, 3203168211198807973, 9817491932198370423)
    ]


@given(keys=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=3), data=st.data())
def test_uniforms_are_those_of_the_reference_whichever_are_asked_for(keys, data):
    ids = data.draw(st.lists(st.integers(0, 200), min_size=1, max_size=9))
    found = uniforms(torch.tensor(keys)[:, None], torch.tensor(ids))
    for row, key in enumerate(keys):
        words = splitmix(key % 2**64, 201)
        wanted = [((words[v] >> 12) + 0.5) / 2**52 for v in ids]
        assert found[row].tolist() == wanted
        assert all(0 < u < 1 for u in wanted)
    each_its_own = torch.tensor([ids] * len(keys))
    assert torch.equal(uniforms(torch.tensor(keys)[:, None], each_its_own), found)


def test_the_ends_are_never_reached():
    """Python's own check of the largest and the smallest: no word gives 0 or 1."""
    assert 0.0 < (0 + 0.5) / 2**52
    assert ((2**52 - 1) + 0.5) * 2.0**-52 < 1.0


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


def steps(keys, ids):
    return uniforms(torch.tensor(keys)[:, None], torch.tensor(ids)).flatten().tolist()


@pytest.mark.parametrize(
    "values",
    [
        steps([RowRandom(0).at(5)], range(30_000)),
        steps([RowRandom(0).at(t) for t in range(30_000)], [3]),
        steps([RowRandom(seed).at(0) for seed in range(30_000)], [0]),
        steps([RowRandom(9, sample).at(7) for sample in range(30_000)], [1]),
        # the low bits
        [math.modf(u * 2**40)[0] for u in steps([RowRandom(1).at(2)], range(30_000))],
    ],
    ids=["ids", "positions", "seeds", "samples", "low bits"],
)
def test_numbers_are_uniform(values):
    assert chi_square(values, 256) < limit(255)


@pytest.mark.parametrize(("steps_apart", "ids_apart"), [(1, 0), (2, 0), (4, 0), (0, 1), (1, 1)])
def test_pairs_fill_the_square(steps_apart, ids_apart):
    source = RowRandom(5)
    keys = [source.at(t) for t in range(200 + steps_apart)]
    table = np.array(steps(keys, range(200 + ids_apart))).reshape(len(keys), -1)
    first, second = table[:200, :200], table[steps_apart:, ids_apart:]
    cells = (np.floor(first * 16) * 16 + np.floor(second * 16)) / 256
    assert chi_square(cells.flatten(), 256) < limit(255)


@pytest.mark.parametrize("other", [(4, 1), (3, 2), (3 + 2**32, 1), (-3, 1), (31, 0)])
def test_neighbouring_seeds_give_unrelated_numbers(other):
    """torch's own seeding looks at 32 bits only; ours must not."""
    left, right = RowRandom(3, 1), RowRandom(*other)
    pairs = torch.tensor(
        [steps([source.at(t) for t in range(500)], [0]) for source in (left, right)]
    )
    assert abs(float(torch.corrcoef(pairs)[0, 1])) < 0.2
