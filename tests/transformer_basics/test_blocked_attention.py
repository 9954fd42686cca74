"""Attention by blocks of queries against the written-out formula; when it is chosen."""

import pytest
import torch

from transformer_basics import blocked_attention as module
from transformer_basics import fast_attention as chooser
from transformer_basics.attention import causal_mask, scaled_dot_product_attention
from transformer_basics.blocked_attention import blocked_attention, blocks_of
from transformer_basics.heads import repeat_heads
from transformer_basics.speed_ups import without


def inputs(length, heads=3, groups=3, dtype=torch.float64, size=8):
    torch.manual_seed(length)
    shapes = (2, heads, length, size), (2, groups, length, size), (2, groups, length, size)
    return [torch.randn(s, dtype=dtype, requires_grad=True) for s in shapes]


def written_out(query, key, value):
    length, heads = query.shape[2], query.shape[1]
    mask = causal_mask(length, length)
    return scaled_dot_product_attention(
        query, repeat_heads(key, heads), repeat_heads(value, heads), mask
    )[0]


@pytest.mark.parametrize("keep", [0, 512])
@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 130, 257, 300])
def test_values_and_gradients_equal_the_formula(length, keep, monkeypatch):
    monkeypatch.setattr(module, "KEEP_UP_TO", keep)
    tensors = inputs(length)
    slope = torch.randn(tensors[0].shape, dtype=torch.float64)
    results = []
    for attend in (blocked_attention, written_out):
        output = attend(*tensors)
        results.append([output, *torch.autograd.grad(output, tensors, slope)])
    for mine, right in zip(*results, strict=True):
        assert torch.allclose(mine, right, atol=1e-12)


def test_grouped_query_heads():
    tensors = inputs(70, heads=4, groups=2)
    mine, right = blocked_attention(*tensors), written_out(*tensors)
    assert torch.allclose(mine, right, atol=1e-12)
    slope = torch.randn_like(right)
    for a, b in zip(
        torch.autograd.grad(mine, tensors, slope),
        torch.autograd.grad(right, tensors, slope),
        strict=True,
    ):
        assert torch.allclose(a, b, atol=1e-12)


def test_gradcheck():
    tensors = inputs(5, heads=1, groups=1, size=3)
    assert torch.autograd.gradcheck(blocked_attention, tensors)


def test_blocks_cover_every_query_once():
    for length in (1, 63, 64, 65, 255, 256, 1000, 1024):
        borders = list(blocks_of(length))
        assert borders[0][0] == 0
        assert borders[-1][1] == length
        assert all(a[1] == b[0] for a, b in zip(borders, borders[1:], strict=False))


def test_long_ones_keep_nothing_quadratic():
    def kept_bytes(length):
        sizes = []
        query, key, value = inputs(length, dtype=torch.float32)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: (sizes.append(t.numel()), t)[1], lambda t: t
        ):
            blocked_attention(query, key, value)
        return sum(sizes)

    assert kept_bytes(512) > 2 * 3 * 512 * 512 / 2  # the probabilities of a short one
    assert kept_bytes(1024) == 2 * 3 * 3 * 1024 * 8  # q, k and v only


@pytest.mark.parametrize(
    ("change", "chosen"),
    [
        ({}, True),
        ({"dtype": torch.float32}, False),
        ({"grad": False}, False),
        ({"mask": True}, False),
        ({"dropout_p": 0.1}, False),
        ({"window": 3}, False),
        ({"off": "blocked"}, False),
    ],
)
def test_when_it_is_chosen(change, chosen, monkeypatch):
    calls = []
    monkeypatch.setattr(
        chooser, "blocked_attention", lambda q, k, v: calls.append(1) or blocked_attention(q, k, v)
    )
    tensors = inputs(9, dtype=change.get("dtype", torch.bfloat16))
    if not change.get("grad", True):
        tensors = [t.detach() for t in tensors]
    mask = causal_mask(9, 9) if change.get("mask") else None
    with without(*([change["off"]] if "off" in change else [])):
        output = chooser.fast_attention(
            *tensors, mask, window=change.get("window"), dropout_p=change.get("dropout_p", 0.0)
        )
    assert bool(calls) == chosen
    assert output.dtype is tensors[0].dtype
