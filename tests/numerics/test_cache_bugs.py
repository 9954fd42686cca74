"""The well-known bugs of key-value caches, put in on purpose: the equalities must notice each.

Every check passes on the code as it is, and fails once the bug is patched in.
"""

import pytest
import torch
import torch.nn.functional as F

from gpt_model.caches import CACHES, CacheSettings
from gpt_model.config import GPTConfig
from gpt_model.model import GPT
from transformer_basics import attention as attention_module
from transformer_basics.kv_cache import KVCache, StaticCache
from transformer_basics.quantized_cache import from_codes, to_codes
from transformer_basics.rotary import RotaryEmbedding
from transformer_basics.sliding_cache import SlidingCache

CONTEXT = 20


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    sizes = {"vocab_size": 13, "max_seq_len": CONTEXT, "dim": 16, "n_layers": 2, "n_heads": 2}
    return GPT(GPTConfig(**sizes, position="rope", norm="rmsnorm", init_std=0.5)).eval()


def settings(kind):
    return CacheSettings("sliding", 2, CONTEXT - 2) if kind == "sliding" else CacheSettings(kind)


def fed(model, cache, ids, sizes):
    with torch.no_grad():
        return torch.cat([model(piece, cache=cache).logits for piece in ids.split(sizes, 1)], 1)


def expected(model, ids, kind):
    """No cache; for int8, no cache with keys and values rounded as it rounds them."""
    if kind != "int8":
        with torch.no_grad():
            return model(ids).logits
    plain = attention_module.CausalSelfAttention._query_key_value

    def rounded(self, *arguments):
        query, key, value, mask = plain(self, *arguments)
        key, value = (from_codes(*to_codes(x), x.dtype) for x in (key, value))
        return query, key, value, mask

    attention_module.CausalSelfAttention._query_key_value = rounded
    try:
        with torch.no_grad():
            return model(ids).logits
    finally:
        attention_module.CausalSelfAttention._query_key_value = plain


def equal(found, wanted):
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-3)


def in_pieces(model, kind):
    ids = torch.randint(13, (2, CONTEXT), generator=torch.Generator().manual_seed(1))
    cache = model.make_cache(2, kind=settings(kind))
    equal(fed(model, cache, ids, [7, 1, 5, 1, 1, 5]), expected(model, ids, kind))


def second_text(model, kind):
    first, second = torch.randint(13, (2, 2, 9), generator=torch.Generator().manual_seed(2))
    cache = model.make_cache(2, kind=settings(kind))
    fed(model, cache, first, [9])
    cache.reset()
    equal(fed(model, cache, second, [4, 1, 4]), expected(model, second, kind))


def window_exactly(model, kind):
    """Feed the model only what the last query may see: with no sinks that is a text of W tokens."""
    one_layer = GPT(model.config.replace(n_layers=1)).eval()
    ids = torch.randint(13, (1, 60), generator=torch.Generator().manual_seed(3))
    cache = one_layer.make_cache(1, kind=CacheSettings("sliding", 0, 6))
    found = fed(one_layer, cache, ids, [9, 1, 40] + [1] * 10)
    with torch.no_grad():
        for end in (30, 55, 60):
            seen = one_layer(ids[:, end - 6 : end], last_only=True).logits[:, 0]
            equal(found[:, end - 1], seen)


CHECKS = {"pieces": in_pieces, "second text": second_text, "window": window_exactly}


def positions_restart(patch):
    plain = RotaryEmbedding.cos_sin
    patch.setattr(RotaryEmbedding, "cos_sin", lambda self, n, offset, *r: plain(self, n, 0, *r))


def causal_with_one_query(patch):
    def attention(query, key, value, mask=None, **_):
        causal = mask is None
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal)

    patch.setattr(attention_module, "fast_attention", attention)


def length_too_early(patch):
    """Advanced before the keys are placed: the hole is filled with zeros, positions are off."""

    def early(plain):
        def method(self, *arguments):
            self.length += 1
            return plain(self, *arguments)

        return method

    patch.setattr(StaticCache, "append", early(StaticCache.append))
    patch.setattr(SlidingCache, "place", early(SlidingCache.place))


def stale_cache(patch):
    patch.setattr(KVCache, "reset", lambda self: None)


def window_changed_by(change):
    def bug(patch):
        plain = SlidingCache.__init__

        def wrong(self, **options):
            plain(self, **{**options, "window": options["window"] + change})

        patch.setattr(SlidingCache, "__init__", wrong)

    bug.__name__ = f"window_{change:+d}"
    return bug


BUGS = [
    (positions_restart, "pieces", ("static", "int8", "sliding")),
    (causal_with_one_query, "pieces", ("static", "growing", "int8", "sliding")),
    (length_too_early, "pieces", ("static", "sliding")),
    (stale_cache, "second text", ("static", "growing", "int8", "sliding")),
    (window_changed_by(1), "window", ("sliding",)),
    (window_changed_by(-1), "window", ("sliding",)),
]


@pytest.mark.parametrize("kind", CACHES)
@pytest.mark.parametrize("check", ["pieces", "second text"])
def test_each_cache_equals_no_cache(model, check, kind):
    CHECKS[check](model, kind)


def test_the_window_is_exact(model):
    window_exactly(model, "sliding")


@pytest.mark.parametrize(
    ("bug", "check", "kind"),
    [(bug, check, kind) for bug, check, kinds in BUGS for kind in kinds],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_each_bug_is_noticed(model, monkeypatch, bug, check, kind):
    bug(monkeypatch)
    with pytest.raises((AssertionError, ValueError)):
        CHECKS[check](model, kind)
