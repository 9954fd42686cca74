"""The split: by document, stable, close to what was asked, never empty."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.document_split import MIN_TOKENS, choose_split, text_hash


def test_the_hash_is_pinned():
    # Changing it would move documents between train and validation of existing corpora.
    assert text_hash("春眠不觉晓".encode()) == 5370319412140936848
    assert text_hash(b"") == 0xE3B0C44298FC1C14


def test_documents_below_the_threshold_are_held_out():
    hashes = np.array([0, 2**63, 2**62 - 1, 2**62, 2**64 - 1], dtype=np.uint64)
    sizes = np.array([10, 10, 10, 10, 10])
    cuts, how = choose_split(hashes, sizes, sizes // 2, 0.25)
    assert how == "documents"
    assert cuts.tolist() == [0, 5, 0, 5, 5]


@pytest.mark.parametrize(
    ("sizes", "how"),
    [
        ([10, 90], "documents"),  # exactly what was asked
        ([5, 95], "documents"),  # half
        ([4, 96], "tail"),  # less than half
        ([20, 80], "documents"),  # twice
        ([21, 79], "tail"),  # more than twice
    ],
)
def test_a_share_far_from_the_asked_one_falls_back_to_the_tail(sizes, how):
    hashes = np.array([0, 2**64 - 1], dtype=np.uint64)
    array = np.array(sizes)
    cuts, found = choose_split(hashes, array, array, 0.1)
    assert found == how
    assert cuts.tolist() == ([0, sizes[1]] if how == "documents" else [sizes[0], sizes[1] - 10])


def test_shares_are_measured_in_bytes_not_in_documents():
    hashes = np.array([0] + [2**64 - 1] * 9, dtype=np.uint64)
    sizes = np.array([1000] + [1] * 9)
    assert choose_split(hashes, sizes, sizes, 0.1)[1] == "tail"


def test_a_single_document_is_cut_where_it_should_be():
    one = np.array([100])
    for hashed in (0, 2**64 - 1):
        cuts, how = choose_split(np.array([hashed], dtype=np.uint64), one, one, 0.1)
        assert (cuts.tolist(), how) == ([90], "tail")


@pytest.mark.parametrize("n_tokens", [0, 1, 3])
def test_too_little_is_refused_with_both_numbers(n_tokens):
    lengths = np.array([n_tokens])
    with pytest.raises(ValueError, match=rf"{n_tokens} tokens \(9 bytes\).* 2 each, 4 together"):
        choose_split(np.array([0], dtype=np.uint64), np.array([9]), lengths, 0.1)


@given(
    st.lists(
        st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 50), st.integers(1, 30)), min_size=1
    ),
    st.floats(1e-9, 1 - 1e-9),
)
def test_neither_side_is_ever_empty(rows, fraction):
    hashes = np.array([row[0] for row in rows], dtype=np.uint64)
    sizes, lengths = (np.array([row[i] for row in rows]) for i in (1, 2))
    total = int(lengths.sum())
    if total < 2 * MIN_TOKENS:
        return
    cuts, how = choose_split(hashes, sizes, lengths, fraction)
    assert ((cuts >= 0) & (cuts <= lengths)).all()
    train = int(cuts.sum())
    if how == "documents":
        assert set(np.unique(cuts[hashes < np.uint64(int(fraction * 2**64))])) <= {0}
        assert 0 < train < total
    else:
        assert MIN_TOKENS <= train <= total - MIN_TOKENS
        wanted = min(max(total - round(fraction * total), MIN_TOKENS), total - MIN_TOKENS)
        assert train == wanted
        inside = np.flatnonzero((cuts > 0) & (cuts < lengths))
        assert len(inside) <= 1  # at most one document is cut in two
        assert (np.diff((cuts > 0).astype(int)) <= 0).all()  # train first, then validation
