"""Gradients of the building blocks against finite differences in float64."""

import pytest
import torch
from torch.autograd import gradcheck

from transformer_basics.activations import ACTIVATIONS, LESSON_ACTIVATIONS
from transformer_basics.attention import (
    CausalSelfAttention,
    attention_mask,
    scaled_dot_product_attention,
)
from transformer_basics.fast_attention import fast_attention
from transformer_basics.kv_cache import GrowingCache
from transformer_basics.layers import (
    FeedForward,
    LayerNorm,
    RMSNorm,
    TransformerBlock,
    layer_norm,
    rms_norm,
)
from transformer_basics.rotary import RotaryEmbedding


def wide(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def test_formula_with_a_row_that_sees_nothing():
    mask = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [1, 1, 0, 0]]).bool()
    inputs = wide(2, 3, 4), wide(2, 4, 4), wide(2, 4, 2)
    assert gradcheck(lambda q, k, v: scaled_dot_product_attention(q, k, v, mask)[0], inputs)
    assert gradcheck(lambda q, k, v: scaled_dot_product_attention(q, k, v, mask)[1], inputs)


@pytest.mark.parametrize(("n_new", "window"), [(1, None), (1, 2), (2, None), (4, None), (4, 2)])
def test_fast_attention(n_new, window):
    inputs = wide(1, 4, n_new, 2), wide(1, 2, 4, 2), wide(1, 2, 4, 2)
    assert gradcheck(lambda q, k, v: fast_attention(q, k, v, window=window), inputs)


def test_norms():
    assert gradcheck(lambda x, w, b: layer_norm(x, w, b, 1e-5), (wide(2, 5), wide(5), wide(5)))
    assert gradcheck(lambda x, w: rms_norm(x, w, 1e-5), (wide(2, 5), wide(5)))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name):
    x = torch.tensor([-3.0, -0.7, -0.1, 0.2, 1.5, 4.0], dtype=torch.float64, requires_grad=True)
    assert gradcheck(LESSON_ACTIVATIONS[name], (x,))
    assert gradcheck(ACTIVATIONS[name], (x,))


def test_rotation():
    rotary = RotaryEmbedding(4)
    positions = torch.tensor([[0, 5], [3, 900]])
    assert gradcheck(lambda x: rotary(x, positions), (wide(2, 1, 2, 4),))


@pytest.mark.parametrize("implementation", ["fast", "lesson"])
@pytest.mark.parametrize("norm_position", ["pre", "post"])
def test_a_whole_block_with_padding(implementation, norm_position):
    attention = CausalSelfAttention(
        8, 4, n_kv_heads=2, rotary=RotaryEmbedding(2), qk_norm=True, implementation=implementation
    )
    feed_forward = FeedForward(8, 6, activation="silu", gated=True)
    norms = LayerNorm(8), RMSNorm(8)
    block = TransformerBlock(attention, feed_forward, *norms, norm_position=norm_position).double()
    for module in (feed_forward, *norms):
        module.implementation = implementation
    mask = attention_mask(3, 3, key_padding=torch.tensor([[False, True, True]]))
    assert gradcheck(lambda x: block(x, mask=mask), (wide(1, 3, 8),))


def test_gradients_pass_through_a_growing_cache():
    attention = CausalSelfAttention(4, 2, rotary=RotaryEmbedding(2)).double()

    def stepwise(x):
        cache = GrowingCache()
        return torch.cat([attention(token, cache=cache) for token in x.split(1, dim=1)], dim=1)

    x = wide(1, 3, 4)
    assert gradcheck(stepwise, (x,))
    gradients = [torch.autograd.grad(f(x).square().sum(), x)[0] for f in (stepwise, attention)]
    torch.testing.assert_close(*gradients)
