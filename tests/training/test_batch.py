"""A batch: shifted by one, padded without counting, moved without losing anything."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.batch import IGNORE_INDEX, Batch, TokenSource, WindowReader


@pytest.mark.parametrize("kind", ["uint16", "uint32", "int64", "list", "tensor"])
def test_windows_are_shifted_by_one(kind):
    values = [7, 1, 9, 4, 0, 3]
    tokens = {"list": values, "tensor": torch.tensor(values)}.get(kind)
    tokens = np.array(values, dtype=kind) if tokens is None else tokens
    batch = WindowReader(tokens).read(np.array([0, 2]), 3)
    assert batch.inputs.tolist() == [[7, 1, 9], [9, 4, 0]]
    assert batch.targets.tolist() == [[1, 9, 4], [4, 0, 3]]
    assert batch.inputs.dtype == batch.targets.dtype == torch.int64
    assert batch.inputs.is_contiguous()
    assert batch.targets.is_contiguous()
    assert batch.window_ids == (0, 2)
    assert batch.document_ids is None


def test_ids_above_the_signed_range_survive():
    assert WindowReader(np.array([65535, 65534], dtype=np.uint16)).read(
        np.array([0]), 1
    ).inputs.tolist() == [[65535]]
    big = np.array([2**32 - 1, 0], dtype=np.uint32)
    assert WindowReader(big).read(np.array([0]), 1).inputs.tolist() == [[2**32 - 1]]


def test_past_the_end_is_padded_and_not_counted():
    batch = WindowReader([5, 6, 7, 8]).read(np.array([0, 2]), 3)
    assert batch.inputs.tolist() == [[5, 6, 7], [7, 0, 0]]
    assert batch.targets.tolist() == [[6, 7, 8], [8, IGNORE_INDEX, IGNORE_INDEX]]
    assert batch.n_targets == 4


def test_a_batch_does_not_share_memory_with_the_tokens():
    tokens = np.arange(6)
    batch = WindowReader(tokens).read(np.array([0]), 3)
    batch.inputs.add_(100)
    assert tokens.tolist() == list(range(6))
    assert batch.targets.tolist() == [[1, 2, 3]]


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=6), st.integers(1, 5), st.integers(0, 2**32)
)
def test_document_ids_number_the_documents(lengths, block_size, seed):
    owner = np.repeat(np.arange(len(lengths)), lengths)
    starts = np.cumsum([0, *lengths[:-1]])
    reader = WindowReader(owner, with_document_ids=True, document_starts=starts)
    first = np.random.default_rng(seed).integers(0, len(owner), 4)
    batch = reader.read(first, block_size)
    real = (first[:, None] + np.arange(block_size)) < len(owner) - 1
    ids = batch.document_ids.numpy()
    assert (ids[real] == batch.inputs.numpy()[real]).all()  # each token is its document's number
    assert batch.document_ids.dtype == torch.int64
    assert batch.document_ids.shape == batch.inputs.shape


@pytest.mark.parametrize("starts", [[1], [], [0, 0], [0, 5, 3], [0, 10], [[0]]])
def test_document_starts_must_make_sense(starts):
    with pytest.raises(ValueError, match="rise strictly from 0 and stay below 10 tokens"):
        WindowReader(np.arange(10), with_document_ids=True, document_starts=starts)


def test_document_ids_need_document_starts():
    with pytest.raises(ValueError, match="with_document_ids=True needs document_starts"):
        WindowReader(np.arange(10), with_document_ids=True)


@pytest.mark.parametrize("tokens", [np.zeros((2, 3), dtype=int), [0.5, 1.0], np.array(["a"]), 3])
def test_tokens_must_be_a_row_of_integers(tokens):
    with pytest.raises(ValueError, match="one-dimensional array of integers, got shape"):
        WindowReader(tokens)


class Source:
    document_starts = np.array([0, 4])

    def __init__(self):
        self.checks = 0

    @property
    def tokens(self):
        return np.arange(10)

    def check_intact(self):
        self.checks += 1


def test_a_source_is_checked_before_every_read():
    source = Source()
    assert isinstance(source, TokenSource)
    reader = WindowReader(source, with_document_ids=True)
    before = source.checks
    batch = reader.read(np.array([2]), 3)
    reader.read(np.array([2]), 3)
    assert source.checks == before + 2
    assert batch.document_ids.tolist() == [[0, 0, 1]]
    other = WindowReader(source, with_document_ids=True, document_starts=[0, 3])
    assert other.read(np.array([2]), 3).document_ids.tolist() == [[0, 1, 1]]


def make_batch():
    targets = torch.tensor([[1, IGNORE_INDEX], [3, 4]])
    return Batch(torch.tensor([[0, 1], [2, 3]]), targets, torch.tensor([[0, 0], [1, 1]]), (4, 8))


def test_moving_keeps_everything_and_counts_once(monkeypatch):
    batch = make_batch()
    moved = batch.to("cpu")
    assert moved.inputs is batch.inputs  # already there: not copied
    assert moved.window_ids == (4, 8)
    assert moved.document_ids is batch.document_ids
    assert moved.n_targets == batch.n_targets == 3
    assert Batch(batch.inputs, batch.targets).to("cpu").document_ids is None
    away = batch.to("meta")
    assert {t.device.type for t in (away.inputs, away.targets, away.document_ids)} == {"meta"}
    assert away.n_targets == 3  # a meta tensor could not be counted: it was counted before


def test_a_batch_cannot_be_changed():
    with pytest.raises(AttributeError):
        make_batch().inputs = None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_moving_to_a_gpu():
    batch = make_batch()
    moved = batch.to("cuda")
    assert moved.inputs.device.type == "cuda"
    assert torch.equal(moved.targets.cpu(), batch.targets)
