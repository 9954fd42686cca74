"""The sliding cache against a definition in loops: ranks inside the cache, one query at a time."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer_basics.attention import CausalSelfAttention
from transformer_basics.heads import repeat_heads, split_heads
from transformer_basics.kv_cache import GrowingCache, ModelCache
from transformer_basics.rope_scaling import RopeScaling
from transformer_basics.rotary import RotaryEmbedding
from transformer_basics.sliding_cache import SlidingCache, sliding_capacity

HEAD_DIM = 6
KINDS = {
    "rope": {},
    "grouped": {"n_kv_heads": 2},
    "normed": {"qk_norm": True, "qkv_bias": True},
    "yarn": {"scaling": RopeScaling("yarn", 4.0, 16)},
    "none": {"rotary": None},
}
BUILT = {}


def build(name):
    if name not in BUILT:
        torch.manual_seed(3)
        options = dict(KINDS[name])
        scaling = options.pop("scaling", None)
        options.setdefault("rotary", RotaryEmbedding(HEAD_DIM, max_seq_len=8, scaling=scaling))
        BUILT[name] = CausalSelfAttention(24, 4, head_dim=HEAD_DIM, **options).eval()
        for parameter in BUILT[name].parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    return BUILT[name]


def by_definition(attention, x, n_sinks, window):
    """One row (T, D): each query sees sinks and window, at their ranks among what it sees."""
    length, x = x.shape[0], x[None]
    query = split_heads(attention.q_proj(x), attention.n_heads)
    key = split_heads(attention.k_proj(x), attention.n_kv_heads)
    value = split_heads(attention.v_proj(x), attention.n_kv_heads)
    if attention.q_norm is not None:
        query, key = attention.q_norm(query), attention.k_norm(key)
    outputs = []
    for p in range(length):
        seen = [j for j in range(p + 1) if j < n_sinks or j > p - window]
        q, k, v = query[:, :, p : p + 1], key[:, :, seen], value[:, :, seen]
        if attention.rotary is not None:
            k = attention.rotary(k)
            q = attention.rotary(q, offset=len(seen) - 1)
        k, v = repeat_heads(k, attention.n_heads), repeat_heads(v, attention.n_heads)
        scores = q @ k.transpose(-2, -1) / math.sqrt(HEAD_DIM)
        outputs.append((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
    return attention.out_proj(torch.cat(outputs, dim=1))[0]


def cache_for(attention, batch, n_sinks, window):
    return SlidingCache(batch, attention.n_kv_heads, window, HEAD_DIM, n_sinks=n_sinks)


@settings(max_examples=120)
@given(
    name=st.sampled_from(list(KINDS)),
    n_sinks=st.integers(0, 4),
    window=st.integers(1, 7),
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=3),
    pieces=st.lists(st.integers(1, 12), min_size=1, max_size=40),
    implementation=st.sampled_from(["fast", "lesson", "flash"]),
)
def test_any_chunks_of_any_rows_equal_the_definition(
    name, n_sinks, window, lengths, pieces, implementation
):
    """Rows of unequal length are padded on the left; windows shorter than the chunks included."""
    attention, batch, longest = build(name), len(lengths), max(lengths)
    attention.implementation = implementation
    rows = [torch.randn(length, 24) for length in lengths]
    x, real = torch.randn(batch, longest, 24), torch.zeros(batch, longest, dtype=torch.bool)
    for i, row in enumerate(rows):
        x[i, -len(row) :], real[i, -len(row) :] = row, True
    cache = ModelCache([cache_for(attention, batch, n_sinks, window)])
    outputs, start = [], 0
    with torch.no_grad():
        for size in [*pieces, longest]:
            end = min(start + size, longest)
            if start == end:
                break
            if len(set(lengths)) > 1 or start % 2:
                cache.note_padding(real[:, :end])
            outputs.append(attention(x[:, start:end], cache=cache[0]))
            start = end
        found = torch.cat(outputs, dim=1)
        assert found.isfinite().all()
        for i, row in enumerate(rows):
            expected = by_definition(attention, row, n_sinks, window)
            torch.testing.assert_close(found[i, -len(row) :], expected, atol=2e-5, rtol=1e-4)
    assert cache.length == longest
    assert cache[0]._keys.shape[2] == sliding_capacity(n_sinks, window)


@settings(max_examples=60)
@given(
    name=st.sampled_from(list(KINDS)),
    n_sinks=st.integers(0, 3),
    window=st.integers(1, 6),
    data=st.data(),
)
def test_truncated_reordered_and_reset_as_if_it_had_never_happened(name, n_sinks, window, data):
    attention = build(name)
    attention.implementation = "fast"
    cache, rows = cache_for(attention, 2, n_sinks, window), torch.zeros(2, 0, 24)
    with torch.no_grad():
        for _ in range(8):
            new = torch.randn(rows.shape[0], data.draw(st.integers(1, 5)), 24)
            rows = torch.cat((rows, new), dim=1)
            found = attention(new, cache=cache)
            for row, output in zip(rows, found, strict=True):
                expected = by_definition(attention, row, n_sinks, window)[-new.shape[1] :]
                torch.testing.assert_close(output, expected, atol=2e-5, rtol=1e-4)
            step = data.draw(st.sampled_from(["go on", "cut", "reorder", "reset"]))
            if step == "cut":
                length = data.draw(st.integers(0, rows.shape[1]))
                try:
                    cache.truncate(length)
                    rows = rows[:, :length]
                except ValueError as error:  # it says how far it can go: that far it goes
                    shortest = int(str(error).split("become is ")[1].split(",")[0])
                    assert length < shortest <= rows.shape[1]
                    assert n_sinks + window < cache.length
                    cache.truncate(shortest)
                    rows = rows[:, :shortest]
            if step == "reorder":
                index = torch.tensor(data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1)))
                index = index[:3]
                cache.reorder(index)
                rows = rows[index]
            if step == "reset":
                cache.reset()
                rows = rows[:, :0]


def test_the_window_counts_the_token_itself_and_not_one_more():
    """Off by one either way changes which value is averaged."""
    cache = SlidingCache(1, 1, 3, 2, n_sinks=1)
    for t in range(9):
        step = torch.full((1, 1, 1, 2), float(t))
        keys, values = cache.append(step, step)
        assert values[0, 0, :, 0].tolist() == sorted({0, *range(max(0, t - 2), t + 1)})
        assert torch.equal(keys, values)


def test_what_the_sinks_have_covered_is_not_given_back():
    """One by one the sinks are copied over the columns just forgotten: those are gone."""
    cache = SlidingCache(1, 1, 4, 2, n_sinks=2)
    for t in range(8):
        cache.append(*torch.full((2, 1, 1, 1, 2), float(t)))
    with pytest.raises(ValueError, match=r"back to 6 of 8 tokens: .* become is 7, or 0"):
        cache.truncate(6)
    cache.truncate(7)
    _, values = cache.append(*torch.full((2, 1, 1, 1, 2), 9.0))
    assert values[0, 0, :, 0].tolist() == [0, 1, 4, 5, 6, 9]


def test_memory_and_positions_stay_bounded_however_long():
    attention = build("rope")
    attention.implementation = "fast"
    cache = cache_for(attention, 1, 2, 8)
    before = cache._keys.data_ptr()
    with torch.no_grad():
        for _ in range(300):
            attention(torch.randn(1, 1, 24), cache=cache)
    assert cache.length == 300
    assert cache._keys.data_ptr() == before
    assert len(attention.rotary._cos) <= 64  # not a table of 300 positions


def test_a_second_text_sees_nothing_of_the_first():
    attention = build("rope")
    attention.implementation = "fast"
    cache, x = cache_for(attention, 1, 2, 4), torch.randn(1, 9, 24)
    with torch.no_grad():
        fresh = attention(x, cache=cache_for(attention, 1, 2, 4))
        attention(torch.randn(1, 23, 24), cache=cache)
        cache.note_padding(torch.tensor([1]))
        cache.reset()
        torch.testing.assert_close(attention(x, cache=cache), fresh)


def test_half_precision_stays_close_and_keeps_its_type():
    attention = CausalSelfAttention(24, 4, rotary=RotaryEmbedding(6)).bfloat16().eval()
    x = torch.randn(1, 60, 24, dtype=torch.bfloat16)
    cache = SlidingCache(1, 4, 8, 6, n_sinks=2, dtype=torch.bfloat16)
    with torch.no_grad():
        steps = [attention(piece, cache=cache) for piece in x.split([20] + [1] * 40, dim=1)]
        found = torch.cat(steps, dim=1)
        expected = by_definition(attention.float(), x[0].float(), 2, 8)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found[0].float(), expected, atol=0.02, rtol=0.05)


def test_what_is_refused():
    cache = SlidingCache(2, 1, 4, 2)
    with pytest.raises(ValueError, match="made for 2 rows, got 1"):
        cache.append(*torch.zeros(2, 1, 1, 3, 2))
    with pytest.raises(ValueError, match=r"no gradients: use torch.no_grad\(\)"):
        cache.append(*torch.zeros(2, 2, 1, 3, 2, requires_grad=True))
    assert cache.length == 0
    with pytest.raises(ValueError, match=r"window must be an integer >= 1, got 0"):
        SlidingCache(1, 1, 0, 2)
    with pytest.raises(ValueError, match=r"n_sinks must be an integer >= 0, got -1"):
        SlidingCache(1, 1, 4, 2, n_sinks=-1)
    with pytest.raises(ValueError, match="padding on the left only"):
        ModelCache([cache]).note_padding(torch.tensor([[True, False, True]]))
    with pytest.raises(NotImplementedError, match="leaves positions to the attention"):
        GrowingCache().place(*torch.zeros(3, 1, 1, 1, 2), None)
