"""Which tiles are read: the tiles put together again are the mask of masks.py."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from transformer_basics.attention_tiles import Rules, rules_for, tile_plan, whole_mask
from transformer_basics.masks import attention_mask


@given(data=st.data())
def test_the_tiles_are_the_mask(data):
    n_keys = data.draw(st.integers(1, 24), "keys")
    n_queries = data.draw(st.integers(1, n_keys), "queries")
    window = data.draw(st.none() | st.integers(1, 26), "window")
    tiles = data.draw(st.tuples(st.integers(1, 9), st.integers(1, 9)), "tiles")
    documents = None
    if data.draw(st.booleans(), "documents"):  # any numbers, in any order, coming back too
        rows = st.lists(st.integers(-2, 3), min_size=n_keys, max_size=n_keys)
        documents = torch.tensor([data.draw(rows), data.draw(rows)])
    rules = Rules(n_queries, n_keys, True, window, *tiles)
    expected = attention_mask(n_queries, n_keys, window=window, document_ids=documents)[:, 0]
    assert torch.equal(
        whole_mask(rules, documents, 2), expected.expand(2, n_queries, n_keys).contiguous()
    )


def test_what_is_skipped_and_what_needs_no_mask():
    """8 tiles: below the diagonal whole, on it masked, above it nothing."""
    for index, row in enumerate(tile_plan(Rules(64, 64, True, None, 8, 8))):
        assert [tile.masked for tile in row.tiles] == [False] * index + [True]
    # a window of 9 in tiles of 8: two tiles a row, or three
    widths = [len(row.tiles) for row in tile_plan(Rules(64, 64, True, 9, 8, 8))]
    assert widths == [1] + [2] * 7
    assert [len(row.tiles) for row in tile_plan(Rules(64, 64, True, 10, 8, 8))] == [1, 2] + [3] * 6
    # the last 8 of 64: one row, all but the last tile whole
    (row,) = tile_plan(Rules(8, 64, True, None, 8, 8))
    assert [tile.masked for tile in row.tiles] == [False] * 7 + [True]
    # the third tile ends at the first query's own key: whole
    (row,) = tile_plan(Rules(4, 12, True, None, 4, 3))
    assert [tile.masked for tile in row.tiles] == [False] * 3 + [True]
    # no rule at all: nothing skipped, nothing masked
    assert all(
        len(row.tiles) == 8 and not any(tile.masked for tile in row.tiles)
        for row in tile_plan(Rules(64, 64, False, None, 8, 8))
    )


def test_documents_on_tile_borders_need_only_the_diagonal_masked():
    documents = torch.arange(64)[None] // 16
    plan = tile_plan(Rules(64, 64, True, None, 8, 8), documents)
    assert [len(row.tiles) for row in plan] == [1, 2] * 4
    assert sum(tile.masked for row in plan for tile in row.tiles) == 8
    # one row of the batch that needs a tile is enough to read it
    both = torch.cat([documents, torch.zeros_like(documents)])
    plan = tile_plan(Rules(64, 64, True, None, 8, 8), both)
    assert [len(row.tiles) for row in plan] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert plan[7].tiles[0].masked


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": (2, 5, 6, 4)}, r"H a multiple of G; got \(2, 5, 6, 4\)"),
        ({"query": (3, 4, 6, 4)}, "need query"),
        ({"query": (2, 4, 6, 5)}, "need query"),
        ({"query": (4, 6, 4)}, "need query"),
        ({"value": (2, 2, 8, 4)}, "need query"),
        ({"window": 0}, "window must be an integer >= 1, got 0"),
        ({"window": 3, "causal": False}, "window=3 needs causal=True"),
        ({"document_ids": (2, 6)}, r"\(batch, keys\) = \(2, 9\).* got \(2, 6\)"),
        ({"document_ids": (2, 9), "query": (2, 4, 10, 4)}, "and 10 queries"),
        ({"key_tile": 0}, "key_tile must be an integer >= 1, got 0"),
        ({"query_tile": 2.0}, "query_tile must be an integer"),
    ],
)
def test_bad_input_is_refused(change, message):
    def zeros(name, shape, dtype=torch.float32):
        return torch.zeros(change.get(name, shape), dtype=dtype)

    documents = zeros("document_ids", (2, 9), torch.long) if "document_ids" in change else None
    with pytest.raises(ValueError, match=message):
        rules_for(
            zeros("query", (2, 4, 6, 4)),
            zeros("key", (2, 2, 9, 4)),
            zeros("value", (2, 2, 9, 4)),
            change.get("causal", True),
            change.get("window"),
            documents,
            change.get("query_tile", 4),
            change.get("key_tile", 4),
        )
