"""Which tiles each program of the kernels walks: the same as the plan of attention_tiles.py."""

import importlib.util

from hypothesis import given
from hypothesis import strategies as st

from transformer_basics import flash_programs
from transformer_basics.attention_tiles import Rules, tile_plan
from transformer_basics.flash_programs import keys_for, queries_for, walks


@given(data=st.data())
def test_the_walks_are_the_plan(data):
    """Forward and dQ by queries, dK and dV by keys: both meet exactly the tiles of the plan."""
    n_queries, n_keys = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 60))
    causal = data.draw(st.booleans())
    window = data.draw(st.none() | st.integers(1, 70)) if causal else None
    tiles = data.draw(st.tuples(st.sampled_from([1, 4, 16]), st.sampled_from([1, 4, 16])))
    rules = Rules(n_queries, n_keys, causal, window, *tiles)
    plan = tile_plan(rules)
    expected = {(row.start, tile.first) for row in plan for tile in row.tiles}
    by_query = walks(keys_for, len(plan), tiles[0], rules)
    walked = {
        (row.start, key)
        for row, (first, last) in zip(plan, by_query, strict=True)
        for key in range(first, last, tiles[1])
    }
    assert walked == expected
    by_key = walks(queries_for, -(-n_keys // tiles[1]), tiles[1], rules)
    walked = {
        (query, index * tiles[1])
        for index, (first, last) in enumerate(by_key)
        for query in range(first, last, tiles[0])
    }
    assert walked == expected


def test_triton_is_used_where_it_is_installed():
    installed = importlib.util.find_spec("triton") is not None
    assert (flash_programs.triton is not None) == installed
    assert hasattr(flash_programs.forward_kernel, "arg_names") == installed
