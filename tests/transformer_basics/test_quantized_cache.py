"""INT8 keys and values: the bound holds, and how the text is cut changes nothing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer_basics.attention import CausalSelfAttention
from transformer_basics.quantized_cache import QuantizedCache, from_codes, to_codes
from transformer_basics.rotary import RotaryEmbedding


@given(
    st.lists(
        st.lists(st.floats(-1e4, 1e4, width=32), min_size=4, max_size=4), min_size=1, max_size=6
    )
)
def test_every_number_is_within_half_a_step(rows):
    x = torch.tensor(rows)
    codes, scale = to_codes(x)
    assert codes.dtype == torch.int8
    assert scale.shape == (len(rows), 1)
    assert codes.min() >= -127
    back = from_codes(codes, scale, torch.float32)
    torch.testing.assert_close(scale[:, 0], x.abs().amax(1) / 127)
    assert ((back - x).abs() <= scale / 2 * (1 + 1e-5) + 1e-30).all()
    # symmetric: the codes of −x are those of x with the other sign
    assert torch.equal(to_codes(-x)[0], -codes)


def test_edges_zero_rows_outliers_and_tiny_numbers():
    zero, scale = to_codes(torch.zeros(2, 3))
    assert zero.eq(0).all()
    assert from_codes(zero, scale, torch.float32).eq(0).all()
    codes, _ = to_codes(torch.tensor([[127.0, -127.0, 63.4, 0.49, 1e-3]]))
    assert codes.tolist() == [[127, -127, 63, 0, 0]]
    tiny = torch.tensor([[1e-38, -3e-38]])
    assert from_codes(*to_codes(tiny), torch.float32)[0, 1] < -2.9e-38
    assert (
        not from_codes(*to_codes(torch.tensor([[torch.nan, 1.0]])), torch.float32).isfinite().any()
    )


operations = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 4)),
        st.tuples(st.just("truncate"), st.floats(0, 1)),
        st.tuples(st.just("reorder"), st.lists(st.integers(0, 10), min_size=1, max_size=4)),
        st.tuples(st.just("reset"), st.none()),
    ),
    max_size=12,
)


@given(operations)
@settings(max_examples=60)
def test_any_sequence_of_operations_equals_rounding_a_plain_tensor(sequence):
    cache, model = QuantizedCache(2, 2, 64, 3), torch.zeros(2, 2, 2, 0, 3)
    for operation, argument in [*sequence, ("append", 1)]:
        if operation == "append":
            piece = torch.randn(2, model.shape[1], 2, argument, 3)
            rounded = from_codes(*to_codes(piece), torch.float32)
            model = torch.cat((model, rounded), dim=3)
            assert torch.equal(torch.stack(cache.append(*piece)), model)
        elif operation == "truncate":
            length = int(argument * model.shape[3])
            model = model[:, :, :, :length]
            cache.truncate(length)
        elif operation == "reorder":
            rows = torch.tensor(argument) % model.shape[1]
            model = model[:, rows]
            cache.reorder(rows)
        else:
            model = model[:, :, :, :0]
            cache.reset()
        assert cache.length == model.shape[3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_with_it_is_close_and_the_same_however_cut(dtype):
    attention = CausalSelfAttention(32, 4, n_kv_heads=2, rotary=RotaryEmbedding(8)).to(dtype).eval()
    x = torch.randn(2, 20, 32, dtype=dtype)
    with torch.no_grad():
        exact = attention(x)
        whole = attention(x, cache=QuantizedCache(2, 2, 20, 8, dtype))
        cache = QuantizedCache(2, 2, 20, 8, dtype)
        pieces = torch.cat([attention(p, cache=cache) for p in x.split([7, 1, 1, 11], 1)], dim=1)
    assert pieces.dtype == dtype
    error = float((whole - exact).abs().max() / exact.abs().max())
    assert 1e-4 < error < 0.03  # not exact, and not far
    torch.testing.assert_close(pieces, whole, atol=1e-5 if dtype == torch.float32 else 0.02, rtol=0)


def test_bytes_per_token_and_refusals():
    cache = QuantizedCache(1, 2, 10, 64)
    stored = (cache._codes._keys, cache._codes._values, cache._scales._keys, cache._scales._values)
    assert sum(tensor.nbytes for tensor in stored) == 10 * 2 * 2 * (64 + 4)
    cache.append(*torch.randn(2, 1, 2, 9, 64))
    with pytest.raises(ValueError, match=r"holds 10 tokens, but 9 cached \+ 2 new = 11"):
        cache.append(*torch.randn(2, 1, 2, 2, 64))
    assert cache.length == cache._scales.length == 9
    with pytest.raises(ValueError, match="made for 1 rows, got 2"):
        cache.append(*torch.randn(2, 2, 2, 1, 64))
    with pytest.raises(ValueError, match="keeps no gradients"):
        cache.append(*torch.randn(2, 1, 2, 1, 64, requires_grad=True))
    with pytest.raises(ValueError, match=r">= 0 and <= 9, got 10"):
        cache.truncate(10)
