"""Both caches against one torch.cat, through any sequence of operations."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer_basics.kv_cache import GrowingCache, ModelCache, StaticCache

HEADS, HEAD_DIM, CAPACITY = 2, 3, 64


def make(kind, batch=2, capacity=CAPACITY):
    if kind == "growing":
        return GrowingCache()
    return StaticCache(batch, HEADS, capacity, HEAD_DIM)


def new(batch, length):
    return torch.randn(2, batch, HEADS, length, HEAD_DIM).unbind()


@pytest.mark.parametrize("kind", ["growing", "static"])
def test_append_returns_everything_in_order(kind):
    cache, pieces = make(kind), [new(2, length) for length in (3, 1, 4)]
    assert cache.length == 0
    for count in range(1, 4):
        keys, values = cache.append(*pieces[count - 1])
        assert torch.equal(keys, torch.cat([key for key, _ in pieces[:count]], dim=2))
        assert torch.equal(values, torch.cat([value for _, value in pieces[:count]], dim=2))
        assert cache.length == keys.shape[2]


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
@settings(max_examples=80)
def test_any_sequence_of_operations_equals_a_plain_tensor(sequence):
    """The model: one tensor of keys per cache, changed in the obvious way."""
    torch.manual_seed(0)
    caches = [make("growing"), make("static")]
    model = torch.zeros(2, 2, HEADS, 0, HEAD_DIM)  # keys and values
    for operation, argument in [*sequence, ("append", 1)]:
        if operation == "append":
            piece = torch.stack(new(model.shape[1], argument))
            model = torch.cat((model, piece), dim=3)
            for cache in caches:
                assert torch.equal(torch.stack(cache.append(*piece)), model)
        elif operation == "truncate":
            length = int(argument * model.shape[3])
            model = model[:, :, :, :length]
            for cache in caches:
                cache.truncate(length)
        elif operation == "reorder":
            rows = torch.tensor(argument) % model.shape[1]
            model = model[:, rows]
            for cache in caches:
                cache.reorder(rows)
        else:
            model = model[:, :, :, :0]
            for cache in caches:
                cache.reset()
        assert [cache.length for cache in caches] == [model.shape[3]] * 2


def test_static_cache_returns_views_of_one_buffer():
    cache = make("static")
    first, _ = cache.append(*new(2, 3))
    second, _ = cache.append(*new(2, 1))
    assert first.data_ptr() == second.data_ptr()
    assert second.shape == (2, HEADS, 4, HEAD_DIM)


def test_over_capacity_names_both_lengths_and_changes_nothing():
    cache = make("static", capacity=4)
    before, _ = cache.append(*new(2, 3))
    before = before.clone()
    with pytest.raises(ValueError, match=r"holds 4 tokens, but 3 cached \+ 2 new = 5"):
        cache.append(*new(2, 2))
    assert cache.length == 3
    keys, _ = cache.append(*new(2, 1))  # exactly full is allowed
    assert torch.equal(keys[:, :, :3], before)
    with pytest.raises(ValueError, match=r"4 cached \+ 1 new = 5"):
        cache.append(*new(2, 1))


def test_another_batch_size_is_not_broadcast():
    cache = make("static", batch=3)
    with pytest.raises(ValueError, match=r"made for 3 rows, got 1; make a new one"):
        cache.append(*new(1, 2))
    assert cache.length == 0


def test_gradients_need_a_growing_cache():
    key, value = new(2, 2)
    key.requires_grad_()
    with pytest.raises(ValueError, match=r"no gradients: use torch.no_grad\(\)"):
        make("static").append(key, value)
    cache = make("growing")
    cache.append(key, value)
    keys, _ = cache.append(*new(2, 1))
    keys.sum().backward()
    assert key.grad.eq(1).all()
    with torch.no_grad():
        make("static").append(key * 1, value)


def test_static_cache_works_across_inference_mode():
    cache = make("static")
    with torch.inference_mode():
        cache.append(*new(2, 2))
    keys, _ = cache.append(*new(2, 2))
    assert keys.shape[2] == 4


def test_dtype_and_device_are_chosen_at_construction():
    cache = StaticCache(1, 1, 4, 2, torch.bfloat16, "meta")
    keys, values = cache.append(*torch.zeros(2, 1, 1, 3, 2, device="meta"))
    assert keys.dtype == values.dtype == torch.bfloat16
    assert keys.is_meta


@pytest.mark.parametrize("kind", ["growing", "static"])
@pytest.mark.parametrize("length", [4, -1])
def test_truncating_to_what_is_not_there_is_refused(kind, length):
    cache = make(kind)
    cache.append(*new(2, 3))
    with pytest.raises(ValueError, match=rf">= 0 and <= 3, got {length}"):
        cache.truncate(length)
    assert cache.length == 3


def test_a_reset_growing_cache_takes_another_batch():
    cache = make("growing")
    cache.append(*new(2, 3))
    cache.reset()
    assert cache.append(*new(5, 1))[0].shape[0] == 5


@pytest.mark.parametrize("sizes", [(0, 4), (2, 0)])
def test_construction_errors(sizes):
    with pytest.raises(ValueError, match=r"must be an integer >= 1, got 0"):
        StaticCache(sizes[0], HEADS, sizes[1], HEAD_DIM)


def test_model_cache_moves_all_layers_together():
    layers = [make("static"), make("growing"), make("static")]
    cache = ModelCache(layers)
    assert len(cache) == 3
    assert cache[1] is layers[1]
    assert list(cache) == layers
    pieces = [new(2, 4) for _ in layers]
    for layer, piece in zip(layers, pieces, strict=True):
        layer.append(*piece)
    assert cache.length == 4
    cache.truncate(3)
    cache.reorder(torch.tensor([1, 1, 0]))
    last = new(3, 1)
    for layer, (key, _) in zip(layers, pieces, strict=True):
        assert layer.length == 3
        keys, _ = layer.append(*last)
        assert torch.equal(keys[:, :, :3], key[[1, 1, 0], :, :3])
    cache.reset()
    assert [layer.length for layer in layers] == [0, 0, 0]
    with pytest.raises(ValueError, match=r"at least one layer, got 0"):
        ModelCache([])
