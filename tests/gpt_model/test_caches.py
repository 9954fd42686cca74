"""Every cache by its name, inside the whole model: chunks, padding, restarts, memory."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_model.caches import CACHES, CacheSettings, build_cache
from gpt_model.config import GPTConfig
from gpt_model.memory import cache_memory
from gpt_model.model import GPT

SMALL = {"vocab_size": 13, "max_seq_len": 24, "dim": 16, "n_layers": 2, "n_heads": 4}
MODELS = {
    "rope": {"position": "rope", "norm": "rmsnorm", "qk_norm": True},
    "grouped": {"position": "rope", "n_kv_heads": 2},
    "previous": {"position": "rope", "token_shift": True, "bigram_rows": 17},
    "window": {"position": "rope", "sliding_window": 5},
    "none": {"position": "none"},
}
BUILT = {}


def build(name):
    if name not in BUILT:
        torch.manual_seed(1)
        BUILT[name] = model = GPT(GPTConfig(**{**SMALL, "init_std": 0.4, **MODELS[name]})).eval()
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.startswith("previous_token."):  # these begin at zero
                torch.nn.init.normal_(parameter)
    return BUILT[name]


def fed(model, cache, ids, sizes, real=None):
    """The logits of every position, fed in pieces of these sizes, the rest at once."""
    found, start, n = [], 0, ids.shape[1]
    for size in [*sizes, n]:
        end = min(n, start + size)
        if end > start:
            mask = None if real is None else real[:, :end]
            found.append(model(ids[:, start:end], attention_mask=mask, cache=cache).logits)
        start = end
    return torch.cat(found, dim=1)


def padded(lengths):
    rows = [torch.randint(13, (1, length)) for length in lengths]
    ids = torch.zeros(len(rows), max(lengths), dtype=torch.long)
    real = torch.zeros(ids.shape, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, -row.shape[1] :], real[i, -row.shape[1] :] = row[0], True
    return rows, ids, real


@settings(max_examples=100)
@given(
    name=st.sampled_from(list(MODELS)),
    kind=st.sampled_from(list(CACHES)),
    lengths=st.lists(st.integers(1, 24), min_size=1, max_size=3),
    sizes=st.lists(st.integers(1, 9), max_size=24),
)
def test_a_padded_batch_in_pieces_equals_each_row_alone(name, kind, lengths, sizes):
    """In the context nothing is forgotten: all but int8 equal no cache, int8 equals itself."""
    model = build(name)
    rows, ids, real = padded(lengths)
    window = min(24, model.config.sliding_window or 24)
    chosen = CacheSettings(kind, 0, window) if kind == "sliding" else CacheSettings(kind)
    with torch.no_grad():
        cache = build_cache(model.config, chosen, len(rows))
        found = fed(model, cache, ids, sizes, real)
        for i, row in enumerate(rows):
            alone = None if kind != "int8" else build_cache(model.config, chosen, 1)
            expected = model(row, cache=alone).logits[0]
            # a number on the edge between two codes may fall on either side of it
            tolerance = {"atol": 0.1, "rtol": 0.1} if kind == "int8" else {}
            tolerance = tolerance or {"atol": 5e-5, "rtol": 1e-4}
            torch.testing.assert_close(found[i, -row.shape[1] :], expected, **tolerance)
        # restarted, it sees nothing of the first text, its padding included
        cache.reset()
        assert cache.length == 0
        other = torch.randint(13, (len(rows), 7))
        fresh = build_cache(model.config, chosen, len(rows))
        torch.testing.assert_close(
            fed(model, cache, other, [3]), fed(model, fresh, other, [3]), atol=5e-5, rtol=1e-4
        )


@settings(max_examples=50)
@given(
    name=st.sampled_from(list(MODELS)),
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=3),
    sizes=st.lists(st.integers(1, 20), max_size=60),
    n_sinks=st.integers(0, 3),
    window=st.integers(1, 8),
)
def test_sliding_far_past_the_context_in_a_batch_and_alone(name, lengths, sizes, n_sinks, window):
    model = build(name)
    own = model.config.sliding_window
    chosen = CacheSettings("sliding", 0 if own else n_sinks, min(window, own or window))
    rows, ids, real = padded(lengths)
    with torch.no_grad():
        found = fed(model, build_cache(model.config, chosen, len(rows)), ids, sizes, real)
        for i, row in enumerate(rows):
            alone = fed(model, build_cache(model.config, chosen, 1), row, [1] * row.shape[1])
            torch.testing.assert_close(found[i, -row.shape[1] :], alone[0], atol=5e-5, rtol=1e-4)


def test_a_model_trained_with_a_window_is_continued_exactly_as_by_a_longer_context():
    """Window w and no sinks: what a model with a longer context would see, in bounded memory."""
    model = build("window")
    longer = GPT(model.config.replace(max_seq_len=70)).eval()
    longer.load_state_dict(model.state_dict())
    ids = torch.randint(13, (2, 70))
    with torch.no_grad():
        cache = model.make_cache(2, kind="sliding")
        found = fed(model, cache, ids, [30] + [1] * 40)
        torch.testing.assert_close(found, longer(ids).logits, atol=5e-5, rtol=1e-4)
        with pytest.raises(ValueError, match="do not fit into max_seq_len 24"):
            model(ids)


def test_int8_is_close_to_no_cache_and_bounded():
    """Measured over 20 texts: the largest change of a logit beside the spread of the logits."""
    model, worst = build("rope"), 0.0
    for seed in range(20):
        ids = torch.randint(13, (1, 24), generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            exact = model(ids).logits
            found = fed(model, model.make_cache(1, kind="int8"), ids, [11] + [1] * 13)
        worst = max(worst, float((found - exact).abs().max() / exact.std()))
    assert 1e-4 < worst < 0.1


@pytest.mark.parametrize("kind", [kind for kind in CACHES if kind != "growing"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_memory_formula_is_what_the_tensors_take(kind, dtype):
    model = build("grouped")
    chosen = CacheSettings(kind, 3, 10) if kind == "sliding" else CacheSettings(kind)
    cache = build_cache(model.config, chosen, 2, capacity=17, dtype=dtype)

    def tensors(value):
        if isinstance(value, torch.Tensor):
            return value.nbytes
        return sum(map(tensors, vars(value).values())) if hasattr(value, "__dict__") else 0

    taken = sum(
        sum(tensors(value) for value in vars(layer).values() if not isinstance(value, torch.dtype))
        for layer in cache
    )
    expected = cache_memory(
        model.config, 17, chosen, batch_size=2, bytes_per_value=torch.finfo(dtype).bits // 8
    )
    assert taken == expected
    assert cache_memory(model.config, 17, "none") == 0
    if kind == "sliding":
        assert expected == cache_memory(
            model.config,
            10**6,
            chosen,
            batch_size=2,
            bytes_per_value=torch.finfo(dtype).bits // 8,
        )


def test_defaults_fill_the_context():
    config = build("rope").config
    assert CacheSettings("sliding").resolved(config) == CacheSettings("sliding", 4, 20)
    assert CacheSettings("sliding", 2).resolved(config) == CacheSettings("sliding", 2, 22)
    assert CacheSettings("sliding", None, 5).resolved(config) == CacheSettings("sliding", 4, 5)
    own = build("window").config
    assert CacheSettings("sliding").resolved(own) == CacheSettings("sliding", 0, 5)
    tiny = config.replace(max_seq_len=3)
    assert CacheSettings("sliding").resolved(tiny) == CacheSettings("sliding", 2, 1)
    assert CacheSettings.of("int8") == CacheSettings("int8")


@pytest.mark.parametrize(
    ("kind", "n_sinks", "window", "changes", "message"),
    [
        ("slidng", None, None, {}, r"cache must be one of none, static, .*'slidng'.*'sliding'"),
        ("static", 4, None, {}, r"sinks 4 needs the cache 'sliding'; the cache is 'static'"),
        ("none", None, 9, {}, r"window 9 needs the cache 'sliding'; the cache is 'none'"),
        ("sliding", 4, 21, {}, r"4 sinks and a window of 21 do not fit into max_seq_len 24.*<= 20"),
        ("sliding", 24, None, {}, r"sinks must be < max_seq_len 24, got 24"),
        ("sliding", -1, None, {}, r"sinks must be an integer >= 0, got -1"),
        ("sliding", 0, 0, {}, r"window must be an integer >= 1, got 0"),
        ("sliding", None, None, {"position": "learned"}, r"position 'rope' or 'none', got 'learn"),
        (
            "sliding",
            1,
            None,
            {"sliding_window": 5},
            r"sinks must be 0 .*sliding_window of 5, got 1",
        ),
        ("sliding", 0, 6, {"sliding_window": 5}, r"do not fit into sliding_window 5.*<= 5"),
    ],
)
def test_what_does_not_go_together_is_refused(kind, n_sinks, window, changes, message):
    config = build("rope").config.replace(**changes)
    with pytest.raises(ValueError, match=message):
        CacheSettings(kind, n_sinks, window).resolved(config)


def test_none_is_no_cache_to_build():
    with pytest.raises(ValueError, match="got 'none'"):
        build_cache(build("rope").config, "none", 1)


def test_ids_kept_for_the_previous_token_stay_bounded():
    model = build("previous")
    cache = model.make_cache(1, kind=CacheSettings("sliding", 1, 4))
    with torch.no_grad():
        for _ in range(60):
            model(torch.randint(13, (1, 1)), cache=cache)
    assert cache.length == 60
    assert cache._ids.shape[1] <= 6


def test_document_ids_are_not_silently_ignored():
    model = build("rope")
    with pytest.raises(ValueError, match="document_ids cannot be used with a sliding cache"):
        model(
            torch.zeros(1, 4, dtype=torch.long),
            document_ids=torch.zeros(1, 4, dtype=torch.long),
            cache=model.make_cache(1, kind="sliding"),
        )
