"""A mixture keeps its shares at every step and is a pure function of (seed, step)."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.dataset import TokenBatches
from training.mixture import UNITS, MixedBatches, counts_before, parse_weights, whole_weights

WEIGHTS = st.lists(st.floats(0.01, 100), min_size=2, max_size=5)


def sources(*lengths, batch_size=4, block_size=8, seed=0, **options):
    """Each source has ids of its own, so that a row tells where it comes from."""
    return [
        TokenBatches(
            np.arange(n, dtype=np.int64) + 10_000 * k, batch_size, block_size, seed=seed, **options
        )
        for k, n in enumerate(lengths)
    ]


def owners_of(batch):
    return (batch.inputs[:, 0] // 10_000).tolist()


@settings(max_examples=60)
@given(WEIGHTS, st.integers(0, 10**12))
def test_shares_are_within_a_constant_of_the_weights_at_every_step(weights, g):
    units = whole_weights(weights)
    assert sum(units) == UNITS
    wanted = np.array(weights) / sum(weights)
    assert np.abs(np.array(units) / UNITS - wanted).max() <= 1 / UNITS
    numbers = np.arange(g, g + 500)
    counts = counts_before(numbers, units)
    assert (counts.sum(axis=0) == numbers).all()
    exact = np.array([[number * unit for number in numbers.tolist()] for unit in units])
    assert np.abs(counts - exact / UNITS).max() < len(weights)
    steps = np.diff(counts, axis=1)
    assert (steps.sum(axis=0) == 1).all()
    assert set(np.unique(steps)) <= {0, 1}


@settings(max_examples=25, deadline=None)
@given(WEIGHTS, st.integers(0, 200), st.integers(0, 3))
def test_resuming_at_any_step_equals_the_uninterrupted_order(weights, k, seed):
    lengths = [60 + 40 * i for i in range(len(weights))]
    whole = MixedBatches(sources(*lengths, seed=seed), weights)
    for index in range(max(0, k - 3), k):
        whole(index)
    fresh = MixedBatches(sources(*lengths, seed=seed), weights)
    for index in (k, k + 1):
        one, other = whole(index), fresh(index)
        assert torch.equal(one.inputs, other.inputs)
        assert torch.equal(one.targets, other.targets)
        assert one.window_ids == other.window_ids


def test_every_source_goes_through_its_own_windows_in_its_own_order():
    mixed = MixedBatches(sources(500, 90, batch_size=5), [3, 2])
    seen = {0: [], 1: []}
    for index in range(60):
        batch = mixed(index)
        for owner, row in zip(owners_of(batch), batch.inputs.tolist(), strict=True):
            seen[owner].append(row)
    for k, source in enumerate(sources(500, 90, batch_size=5)):
        alone = [row for index in range(40) for row in source(index).inputs.tolist()]
        assert seen[k] == alone[: len(seen[k])]
    assert (len(seen[0]), len(seen[1])) == (180, 120)


def test_windows_are_located_in_their_source():
    mixed = MixedBatches(sources(500, 90, 300), [1, 1, 1])
    batch = mixed(7)
    found = [mixed.locate(window_id) for window_id in batch.window_ids]
    assert [k for k, _ in found] == owners_of(batch)
    assert [start + 10_000 * k for k, start in found] == batch.inputs[:, 0].tolist()


def test_document_ids_come_along():
    parts = [
        TokenBatches(
            np.arange(100), 4, 8, seed=0, with_document_ids=True, document_starts=[0, 30 + k]
        )
        for k in (0, 40)
    ]
    batch = MixedBatches(parts, [0.5, 0.5])(0)
    border = torch.tensor([[30], [70]])
    owners = MixedBatches(parts, [0.5, 0.5]).owners(np.arange(4))[0]
    assert torch.equal(batch.document_ids, (batch.inputs >= border[owners]).long())


def test_a_changed_weight_or_corpus_changes_the_fingerprint():
    def fingerprint(weights, names=("a", "b")):
        parts = sources(100, 100)
        for part, name in zip(parts, names, strict=True):
            part._reader.fingerprint = name
        return MixedBatches(parts, weights).fingerprint

    assert fingerprint([7, 3]) == fingerprint([0.7, 0.3]) is not None
    assert fingerprint([7, 3]) != fingerprint([0.6, 0.4])
    assert fingerprint([7, 3]) != fingerprint([7, 3], ("a", "c"))
    assert MixedBatches(sources(100, 100), [1, 1]).fingerprint is None


def test_passes_and_the_size_of_a_mixture():
    mixed = MixedBatches(sources(801, 81), [0.5, 0.5])
    assert mixed.n_tokens == 162  # the small one is read once after twice its tokens
    passes = mixed.passes(100)
    assert passes[0] == pytest.approx(200 / 101, abs=0.01)
    assert passes[1] == pytest.approx(200 / 11, abs=0.1)


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("a.txt@0.7+b.jsonl@0.3", [("a.txt", 0.7), ("b.jsonl", 0.3)]),
        ("a@1e3 + hf:x/y:z:train@2", [("a", 1000.0), ("hf:x/y:z:train", 2.0)]),
        ("me@home.txt@2+C:\\b.txt@1", [("me@home.txt", 2.0), ("C:\\b.txt", 1.0)]),
        ("a.txt+b.txt", None),
        ("me@home.txt", None),
        ("a.txt", None),
        ("@0.5", None),
    ],
)
def test_weights_are_written_after_an_at_sign(spec, parts):
    assert parse_weights(spec) == parts


def test_an_existing_file_with_such_a_name_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a@2").write_text("x", encoding="utf-8")
    assert parse_weights("a@2") is None
    assert parse_weights("a@2@3+b@1") == [("a@2", 3.0), ("b", 1.0)]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("a.txt@0.7+b.txt", "give every source of .* a weight, such as b.txt@0.5"),
        ("a.txt@0.7", "has a weight but only one source"),
        ("a.txt@0+b.txt@1", "the weight of 'a.txt' must be a finite number > 0"),
        ("a.txt@nan+b.txt@1", "must be a finite number > 0"),
        ("a.txt@-1+b.txt@1", "must be a finite number > 0"),
        ("a.txt@1e999+b.txt@1", "must be a finite number > 0"),
    ],
)
def test_wrong_weights_are_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        parse_weights(spec)


def test_wrong_mixtures_are_refused():
    with pytest.raises(ValueError, match="needs two sources or more"):
        MixedBatches(sources(100), [1])
    with pytest.raises(ValueError, match="got 2 sources and 3 weights"):
        MixedBatches(sources(100, 100), [1, 1, 1])
    with pytest.raises(ValueError, match="weight must be a finite number > 0.0, got 0.0"):
        MixedBatches(sources(100, 100), [1, 0])
    with pytest.raises(ValueError, match="the smallest is below one in 1,000,000"):
        MixedBatches(sources(100, 100), [1, 1e-9])
    with pytest.raises(ValueError, match="same batch_size and block_size"):
        MixedBatches([*sources(100), *sources(100, block_size=4)], [1, 1])
    with pytest.raises(ValueError, match="index must be an integer >= 0"):
        MixedBatches(sources(100, 100), [1, 1])(-1)
