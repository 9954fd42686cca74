"""Masks against the sentence that defines them, position by position."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from transformer_basics.masks import attention_mask, causal_mask, check_mask, draw


@given(st.integers(1, 7), st.integers(0, 7), st.none() | st.integers(1, 9))
def test_causal_mask_by_definition(n_queries, n_cached, window):
    n_keys = n_cached + n_queries
    mask = causal_mask(n_queries, n_keys, window=window)
    assert mask.dtype == torch.bool
    assert mask.shape == (n_queries, n_keys)
    for i in range(n_queries):
        position = n_keys - n_queries + i
        seen = {j for j in range(n_keys) if mask[i, j]}
        first = 0 if window is None else position - window + 1
        assert seen == set(range(max(first, 0), position + 1))


@given(
    st.data(),
    st.integers(1, 5),
    st.integers(0, 4),
    st.none() | st.integers(1, 6),
    st.integers(1, 3),
)
def test_attention_mask_by_definition(data, n_queries, n_cached, window, batch):
    n_keys = n_cached + n_queries
    cells = st.lists(
        st.lists(st.integers(0, 1), min_size=n_keys, max_size=n_keys),
        min_size=batch,
        max_size=batch,
    )
    real = data.draw(st.none() | cells)
    documents = data.draw(st.none() | cells)
    mask = attention_mask(
        n_queries,
        n_keys,
        key_padding=None if real is None else torch.tensor(real).bool(),
        document_ids=None if documents is None else torch.tensor(documents),
        window=window,
    )
    rows = 1 if real is None and documents is None else batch
    assert mask.shape == (rows, 1, n_queries, n_keys)
    for b in range(rows):
        for i in range(n_queries):
            position = n_cached + i
            for j in range(n_keys):
                visible = j <= position and (window is None or j > position - window)
                visible &= real is None or bool(real[b][j])
                visible &= documents is None or documents[b][position] == documents[b][j]
                assert mask[b, 0, i, j] == (visible or j == position)


def test_more_queries_than_keys_is_refused():
    with pytest.raises(ValueError, match=r"3 queries need at least as many keys, got 2"):
        causal_mask(3, 2)


def test_window_must_be_positive():
    with pytest.raises(ValueError, match=r"window must be an integer >= 1, got 0"):
        causal_mask(3, 3, window=0)


@pytest.mark.parametrize("given", ["key_padding", "document_ids"])
def test_wrong_shapes_name_the_shape_and_the_length(given):
    for wrong in (torch.ones(2, 4).bool(), torch.ones(5).bool()):
        with pytest.raises(ValueError, match=rf"{given} must be \(batch, 5\), got \("):
            attention_mask(5, 5, **{given: wrong})


def test_padding_of_numbers_is_refused():
    with pytest.raises(ValueError, match=r"key_padding must be bool, True = real token"):
        attention_mask(3, 3, key_padding=torch.ones(1, 3))


def test_device_follows_the_given_tensors():
    assert attention_mask(2, 3, key_padding=torch.ones(1, 3, device="meta").bool()).is_meta
    assert causal_mask(2, 3, device="meta").is_meta


def test_check_mask():
    check_mask(torch.ones(2, 3).bool())
    check_mask(torch.ones(2, 1, 2, 3).bool())
    with pytest.raises(ValueError, match=r"got torch.int64"):
        check_mask(torch.ones(2, 3).long())
    with pytest.raises(ValueError, match=r"got \(2, 2, 3\)"):
        check_mask(torch.ones(2, 2, 3).bool())


def test_drawing():
    assert draw(causal_mask(2, 2)) == "    ■ ·\n    ■ ■"
