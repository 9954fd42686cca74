"""The tiled online softmax against the written-out formula: values, gradients, memory."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from transformer_basics.attention import CausalSelfAttention, scaled_dot_product_attention
from transformer_basics.attention_tiles import Rules, whole_mask
from transformer_basics.flash_attention import flash_attention, memory_of
from transformer_basics.heads import repeat_heads
from transformer_basics.kv_cache import GrowingCache
from transformer_basics.masks import attention_mask
from transformer_basics.rotary import RotaryEmbedding


def random_inputs(n_queries, n_keys, heads=4, groups=2, size=8, wide=8, dtype=torch.float32):
    torch.manual_seed(n_queries * 1000 + n_keys)
    shapes = (2, heads, n_queries, size), (2, groups, n_keys, size), (2, groups, n_keys, wide)
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def written_out(query, key, value, mask, scale=None):
    heads = query.shape[1]
    copies = repeat_heads(key, heads), repeat_heads(value, heads)
    return scaled_dot_product_attention(query, *copies, mask, scale=scale)[0]


def causal_table(n_queries, n_keys, window=None):
    """Right-bottom aligned, more queries than keys allowed: their first rows are empty."""
    distance = torch.arange(n_queries)[:, None] + (n_keys - n_queries) - torch.arange(n_keys)
    return (distance >= 0) & (distance < (window or n_keys + n_queries))


def with_gradients(output, inputs):
    torch.manual_seed(1)
    slope = torch.randn(output.shape).to(output.dtype)
    return [output.detach(), *torch.autograd.grad(output, inputs, slope)]


def assert_equal(mine, right, tolerance):
    for name, a, b in zip("OQKV", mine, right, strict=True):
        assert a.dtype == b.dtype
        gap = float((a - b).abs().max())
        # a sum of many terms is only as exact as its largest partial sum
        assert gap <= tolerance * max(1.0, float(b.abs().max())), f"{name} differs by {gap}"


@given(data=st.data())
def test_equals_the_formula(data):
    n_queries = data.draw(st.integers(1, 40), "queries")
    n_keys = data.draw(st.integers(1, 40), "keys")
    groups, share = data.draw(st.sampled_from([(1, 1), (2, 1), (2, 2), (1, 3)]), "heads")
    causal = data.draw(st.booleans(), "causal")
    window = data.draw(st.none() | st.integers(1, 45), "window") if causal else None
    tiles = data.draw(st.tuples(st.integers(1, 45), st.integers(1, 45)), "tiles")
    scale = data.draw(st.sampled_from([None, 0.2, 1.0]), "scale")
    documents = None
    if n_queries <= n_keys and data.draw(st.booleans(), "documents"):
        rows = st.lists(st.integers(0, 3), min_size=n_keys, max_size=n_keys)
        documents = torch.tensor([sorted(data.draw(rows)), data.draw(rows)])
    inputs = random_inputs(n_queries, n_keys, groups * share, groups, wide=5, dtype=torch.float64)
    mask = causal_table(n_queries, n_keys, window) if causal else torch.ones(1, 1).bool()
    if documents is not None:
        own = documents[:, n_keys - n_queries :]
        mask = mask & (own[:, None, :, None] == documents[:, None, None, :])
    mine = flash_attention(
        *inputs,
        causal=causal,
        scale=scale,
        window=window,
        document_ids=documents,
        query_tile=tiles[0],
        key_tile=tiles[1],
    )
    right = written_out(*inputs, mask.expand(2, 1, n_queries, n_keys), scale)
    assert_equal(with_gradients(mine, inputs), with_gradients(right, inputs), 1e-12)


@pytest.mark.parametrize("tile", [16, 128])
@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("n_queries", [40, 300])
def test_long_rows_in_float32(n_queries, window, tile):
    inputs = random_inputs(n_queries, 300)
    output = flash_attention(*inputs, window=window, query_tile=tile, key_tile=tile)
    mine = with_gradients(output, inputs)
    right = with_gradients(written_out(*inputs, causal_table(n_queries, 300, window)), inputs)
    assert_equal(mine, right, 1e-6)


def test_scores_too_large_for_exp():
    """e^s overflows in float32 past 88; the largest score comes last, first, in the middle."""
    query, key, value = (t.detach() for t in random_inputs(1, 12, 1, 1))
    query, value = query[:1], value[:1]
    for peak in (0, 5, 11):
        key = torch.randn(1, 1, 12, 8)
        key[0, 0, peak] = 200.0 * query[0, 0, 0] / query.norm()
        mine = flash_attention(query, key, value, key_tile=4, scale=1.0)
        mask = causal_table(1, 12)
        torch.testing.assert_close(mine, written_out(query, key, value, mask, 1.0))


def test_gradcheck():
    inputs = random_inputs(5, 7, 2, 1, size=3, wide=2, dtype=torch.float64)
    documents = torch.tensor([[0, 0, 1, 1, 1, 2, 2], [0] * 7])

    def attend(query, key, value):
        return flash_attention(
            query, key, value, window=4, document_ids=documents, query_tile=2, key_tile=3
        )

    assert torch.autograd.gradcheck(attend, inputs)


def test_rows_that_see_nothing_are_zero_and_so_are_their_gradients():
    inputs = random_inputs(9, 4)  # the first five queries lie before the first key
    output = flash_attention(*inputs, query_tile=3, key_tile=2)
    assert output[:, :, :5].eq(0).all()
    assert output[:, :, 5:].abs().amin() > 0
    gradient = torch.autograd.grad(output.sum(), inputs)
    assert gradient[0][:, :, :5].eq(0).all()
    assert all(part.isfinite().all() for part in gradient)
    # the values of a row with nothing to see touch nobody's gradient
    slope = torch.zeros_like(output)
    slope[:, :, :5] = 1.0
    blind = torch.autograd.grad(flash_attention(*inputs, query_tile=3), inputs, slope)
    assert all(part.eq(0).all() for part in blind)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_accumulates_in_float32(dtype):
    """The result is the float32 result of the same inputs, rounded once."""
    wide = random_inputs(70, 70)
    inputs = [t.detach().to(dtype).requires_grad_() for t in wide]
    exact = [t.detach().float().requires_grad_() for t in inputs]
    mine = flash_attention(*inputs, query_tile=16, key_tile=16)
    right = flash_attention(*exact, query_tile=16, key_tile=16)
    assert mine.dtype == dtype
    assert torch.equal(mine, right.to(dtype))
    slope = torch.randn(mine.shape).to(dtype)
    for a, b in zip(
        torch.autograd.grad(mine, inputs, slope),
        torch.autograd.grad(right, exact, slope.float()),
        strict=True,
    ):
        assert a.dtype == dtype
        # D is computed from the rounded output: the only other difference
        torch.testing.assert_close(a.float(), b, atol=2e-2, rtol=2e-2)


def test_autocast_changes_nothing_inside():
    inputs = random_inputs(20, 20)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = flash_attention(*inputs, query_tile=8)
    assert torch.equal(mixed, flash_attention(*inputs, query_tile=8))


def test_memory_grows_with_the_length_and_not_with_its_square():
    kept, largest = zip(*(memory_of(flash_attention, n) for n in (512, 1024, 2048)), strict=True)
    bytes_of = [4 * (4 * n * 32 + n) for n in (512, 1024, 2048)]  # q, k, v, o and a number a row
    assert list(kept) == bytes_of
    assert max(largest) <= 2048 * 32 * 4  # the output itself is the largest tensor made

    def written(query, key, value):
        return written_out(query, key, value, causal_table(512, 512))

    assert memory_of(written, 512)[0] > 512 * 512 * 4  # the measure sees the square


def test_one_tile_equals_many():
    inputs = random_inputs(33, 33)
    whole = flash_attention(*inputs, query_tile=64, key_tile=64)
    parts = flash_attention(*inputs, query_tile=5, key_tile=3)
    torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-6)


def test_the_oracle_of_the_oracle():
    """The table used above is the book's mask wherever that one is defined."""
    for n_queries, n_keys, window in ((6, 6, None), (2, 6, 3), (6, 6, 2)):
        table = causal_table(n_queries, n_keys, window)
        assert torch.equal(table, attention_mask(n_queries, n_keys, window=window)[0, 0])
        rules = Rules(n_queries, n_keys, True, window, 2, 2)
        assert torch.equal(table, whole_mask(rules, None, 1)[0])


@pytest.mark.parametrize("window", [None, 3])
def test_in_the_attention_layer(window, monkeypatch):
    from transformer_basics import attention as module

    calls = []
    monkeypatch.setattr(
        module, "flash_attention", lambda *a, **k: calls.append(1) or flash_attention(*a, **k)
    )
    layer = CausalSelfAttention(
        32, 4, n_kv_heads=2, rotary=RotaryEmbedding(8), sliding_window=window, dropout=0.5
    ).eval()
    x = torch.randn(2, 11, 32)
    fast = layer(x)
    assert not calls
    layer.implementation = "flash"
    torch.testing.assert_close(layer(x), fast, atol=1e-6, rtol=1e-5)
    cache = GrowingCache()
    parts = torch.cat([layer(part, cache=cache) for part in x.split(4, dim=1)], dim=1)
    torch.testing.assert_close(parts, fast, atol=1e-6, rtol=1e-5)
    assert len(calls) == 4
    # a mask or dropout goes the fast way
    layer(x, mask=attention_mask(11, 11))
    layer.train()(x)
    assert len(calls) == 4
    with pytest.raises(ValueError, match="implementation must be one of fast, lesson, flash"):
        CausalSelfAttention(32, 4, implementation="flesh")
