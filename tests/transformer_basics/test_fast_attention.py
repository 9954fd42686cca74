"""The fast path's choices, each against the written-out formula."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from transformer_basics.attention import scaled_dot_product_attention
from transformer_basics.fast_attention import fast_attention
from transformer_basics.heads import repeat_heads
from transformer_basics.masks import causal_mask

SHAPES = [(1, 1), (1, 7), (4, 4), (4, 7), (7, 7)]


@pytest.mark.parametrize(("n_new", "n_keys"), SHAPES)
def test_every_shape_equals_the_formula(n_new, n_keys):
    for heads, window in itertools.product((1, 2, 4), (None, 1, 3, 7, 8)):
        query = torch.randn(2, 4, n_new, 8)
        key, value = torch.randn(2, heads, n_keys, 8), torch.randn(2, heads, n_keys, 8)
        mask = causal_mask(n_new, n_keys, window=window)
        expected, _ = scaled_dot_product_attention(
            query, repeat_heads(key, 4), repeat_heads(value, 4), mask
        )
        output = fast_attention(query, key, value, window=window)
        torch.testing.assert_close(output, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("n_new", "n_keys"), SHAPES)
@pytest.mark.parametrize("mask_heads", [None, 1, 4])
def test_a_given_mask_decides_alone(n_new, n_keys, mask_heads):
    """Not causal, broadcast over heads or different for each head; the window is ignored."""
    shape = (n_new, n_keys) if mask_heads is None else (2, mask_heads, n_new, n_keys)
    mask = (torch.rand(shape) < 0.5) | causal_mask(n_new, n_keys, window=1)
    query = torch.randn(2, 4, n_new, 8)
    key, value = torch.randn(2, 2, n_keys, 8), torch.randn(2, 2, n_keys, 8)
    expected, _ = scaled_dot_product_attention(
        query, repeat_heads(key, 4), repeat_heads(value, 4), mask
    )
    output = fast_attention(query, key, value, mask, window=2)
    torch.testing.assert_close(output, expected, atol=1e-6, rtol=1e-5)


def record_calls(monkeypatch):
    calls = []
    real = F.scaled_dot_product_attention

    def spy(query, key, value, attn_mask=None, **options):
        calls.append((query.shape, key.shape, attn_mask is not None, options))
        return real(query, key, value, attn_mask=attn_mask, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    return calls


def test_no_mask_where_none_is_needed(monkeypatch):
    """The fastest kernels take no mask: whole sequences and single tokens must not draw one."""
    calls = record_calls(monkeypatch)
    key = torch.randn(1, 2, 6, 4)
    fast_attention(torch.randn(1, 2, 6, 4), key, key)
    fast_attention(torch.randn(1, 2, 6, 4), key, key, window=6)
    fast_attention(torch.randn(1, 2, 1, 4), key, key)
    fast_attention(torch.randn(1, 2, 1, 4), key, key, window=2)
    assert [masked for _, _, masked, _ in calls] == [False] * 4
    assert [options["is_causal"] for _, _, _, options in calls] == [True, True, False, False]
    assert calls[3][1] == (1, 2, 2, 4)  # only the window's keys are read
    fast_attention(torch.randn(1, 2, 3, 4), key, key)
    assert calls[4][2]
    assert not calls[4][3]["is_causal"]


def test_one_query_shares_keys_without_copies(monkeypatch):
    calls = record_calls(monkeypatch)
    key = torch.randn(1, 2, 6, 4)
    fast_attention(torch.randn(1, 8, 1, 4), key, key)
    assert calls[0][:2] == ((1, 2, 4, 4), (1, 2, 6, 4))
    assert not calls[0][3].get("enable_gqa", False)


def test_dropout_is_passed_on():
    query, key = torch.zeros(1, 4, 300, 4), torch.randn(1, 2, 300, 4)
    value = torch.ones(1, 2, 300, 4)
    for n_new in (1, 2, 300):
        output = fast_attention(query[:, :, :n_new], key, value, dropout_p=0.5)
        assert not torch.allclose(output, torch.ones_like(output), atol=1e-3)
        assert abs(float(output.mean()) - 1.0) < 0.3
