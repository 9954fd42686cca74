"""Norms against PyTorch's, the feed-forward by hand, the block's two ways of wiring."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from transformer_basics.attention import CausalSelfAttention
from transformer_basics.kv_cache import StaticCache
from transformer_basics.layers import (
    ACTIVATIONS,
    NORMS,
    FeedForward,
    LayerNorm,
    RMSNorm,
    TransformerBlock,
    layer_norm,
    rms_norm,
)
from transformer_basics.rotary import RotaryEmbedding


def randomise(module):
    for parameter in module.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    return module


# --- norms -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("eps", [1e-6, 0.1])
def test_layer_norm_equals_pytorch(bias, eps):
    x, weight, shift = torch.randn(2, 3, 8) * 3 + 5, torch.randn(8), torch.randn(8)
    shift = shift if bias else None
    expected = F.layer_norm(x, (8,), weight, shift, eps)
    torch.testing.assert_close(layer_norm(x, weight, shift, eps), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("eps", [1e-6, 0.1])
def test_rms_norm_equals_pytorch(eps):
    x, weight = torch.randn(2, 3, 8) * 3 + 5, torch.randn(8)
    expected = F.rms_norm(x, (8,), weight, eps)
    torch.testing.assert_close(rms_norm(x, weight, eps), expected, atol=1e-5, rtol=1e-5)


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=9))
@settings(max_examples=50)
def test_norms_by_hand(values):
    x, ones = torch.tensor(values, dtype=torch.float64), torch.ones(len(values)).double()
    mean = sum(values) / len(values)
    variance = sum((v - mean) ** 2 for v in values) / len(values)
    expected = torch.tensor(
        [(v - mean) / math.sqrt(variance + 1e-5) for v in values], dtype=torch.float64
    )
    torch.testing.assert_close(layer_norm(x, ones, None, 1e-5), expected, atol=1e-5, rtol=1e-5)
    size = math.sqrt(sum(v * v for v in values) / len(values) + 1e-5)
    expected = torch.tensor([v / size for v in values], dtype=torch.float64)
    torch.testing.assert_close(rms_norm(x, ones, 1e-5), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("implementation", ["fast", "lesson"])
def test_norms_compute_in_float32_and_keep_the_dtype(norm, implementation):
    module = randomise(NORMS[norm](64)).bfloat16()
    module.implementation = implementation
    x = (torch.randn(4, 64) * 30 + 100).bfloat16()  # its mean square has more digits than bf16
    rough = module(x)
    assert rough.dtype == torch.bfloat16
    exact = module.double()(x.double())
    torch.testing.assert_close(rough.double(), exact, atol=1e-5, rtol=2**-8)  # rounded once


@pytest.mark.parametrize("implementation", ["fast", "lesson"])
def test_rms_norm_with_weights_of_another_dtype(implementation, recwarn):
    module = randomise(RMSNorm(16))
    module.implementation = implementation
    x = torch.randn(3, 16)
    rough = module(x.bfloat16())  # what autocast hands to the q and k norms
    assert rough.dtype == torch.bfloat16
    torch.testing.assert_close(rough.float(), module(x), atol=0.02, rtol=0.02)
    assert not recwarn.list
    assert module.bfloat16()(x).dtype == torch.float32


@pytest.mark.parametrize("norm", [LayerNorm(8), LayerNorm(8, bias=False), RMSNorm(8, eps=0.1)])
def test_fast_and_lesson_norms_agree_with_gradients(norm):
    randomise(norm)
    results = []
    x = torch.randn(2, 5, 8)
    for implementation in ("fast", "lesson"):
        norm.implementation = implementation
        given_x = x.clone().requires_grad_()
        y = norm(given_x)
        gradients = torch.autograd.grad(y.square().sum(), [given_x, *norm.parameters()])
        results.append((y, *gradients))
    torch.testing.assert_close(*results, atol=1e-4, rtol=1e-4)


def test_a_constant_row_does_not_divide_by_zero():
    for implementation in ("fast", "lesson"):
        norm = LayerNorm(4)
        norm.implementation = implementation
        assert norm(torch.full((1, 4), 7.0)).abs().max() < 1e-2
        norm = RMSNorm(4)
        norm.implementation = implementation
        assert norm(torch.zeros(1, 4)).eq(0).all()


def test_norms_start_as_plain_normalisation():
    x = torch.randn(3, 8)
    torch.testing.assert_close(LayerNorm(8)(x), F.layer_norm(x, (8,)))
    torch.testing.assert_close(RMSNorm(8)(x), F.rms_norm(x, (8,), eps=1e-5))
    assert LayerNorm(8, bias=False).bias is None
    assert [key for key, _ in LayerNorm(8).named_parameters()] == ["weight", "bias"]


# --- feed-forward ----------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_feed_forward_is_its_formula(activation, gated, bias):
    ffn = FeedForward(6, 10, activation=activation, gated=gated, bias=bias)
    x = torch.randn(2, 3, 6)
    up = F.linear(x, ffn.up_proj.weight, ffn.up_proj.bias)
    if gated:
        gate = F.linear(x, ffn.gate_proj.weight, ffn.gate_proj.bias)
        hidden = ACTIVATIONS[activation](gate) * up
    else:
        hidden = ACTIVATIONS[activation](up)
    expected = F.linear(hidden, ffn.down_proj.weight, ffn.down_proj.bias)
    for implementation in ("fast", "lesson"):
        ffn.implementation = implementation
        torch.testing.assert_close(ffn(x), expected, atol=1e-6, rtol=1e-5)
    names = ["up_proj", "gate_proj", "down_proj"] if gated else ["up_proj", "down_proj"]
    assert [name for name, _ in ffn.named_children()] == names
    assert (ffn.down_proj.bias is not None) == bias


def test_feed_forward_drops_hidden_units_only_in_training():
    ffn, x = FeedForward(6, 64, dropout=0.5), torch.randn(1, 2, 6)
    assert not torch.equal(ffn(x), ffn(x))
    ffn.eval()
    assert torch.equal(ffn(x), ffn(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"activation": "gelu_tan"}, r"activation must be one of gelu, .*did you mean 'gelu_tanh'"),
        ({"ffn_dim": 0}, r"ffn_dim must be an integer >= 1, got 0"),
        ({"dropout": -0.1}, r"dropout must be .* >= 0.0 .*got -0.1"),
        ({"dropout": float("nan")}, r"dropout must be a finite number"),
    ],
)
def test_feed_forward_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        FeedForward(**{"dim": 4, "ffn_dim": 8, **arguments})


# --- the block -------------------------------------------------------------------------------


def make_block(norm_position="pre", **options):
    return TransformerBlock(
        CausalSelfAttention(16, 2, rotary=RotaryEmbedding(8)),
        FeedForward(16, 32),
        randomise(LayerNorm(16)),
        randomise(RMSNorm(16)),
        norm_position=norm_position,
        **options,
    )


def test_pre_and_post_are_their_formulas():
    x = torch.randn(2, 5, 16)
    pre, post = make_block("pre"), make_block("post")
    middle = x + pre.attention(pre.attention_norm(x))
    torch.testing.assert_close(pre(x), middle + pre.feed_forward(pre.ffn_norm(middle)))
    middle = post.attention_norm(x + post.attention(x))
    torch.testing.assert_close(post(x), post.ffn_norm(middle + post.feed_forward(middle)))


def test_pre_norm_leaves_a_straight_road_for_the_gradient():
    """With silent branches a pre-norm block is the identity; a post-norm block is not."""
    x = torch.randn(1, 3, 16)
    for norm_position in ("pre", "post"):
        block = make_block(norm_position)
        for projection in (block.attention.out_proj, block.feed_forward.down_proj):
            for parameter in projection.parameters():
                nn.init.zeros_(parameter)
        assert torch.equal(block(x), x) == (norm_position == "pre")


@pytest.mark.parametrize("norm_position", ["pre", "post"])
def test_arguments_reach_the_attention(norm_position):
    block, x = make_block(norm_position), torch.randn(2, 5, 16)
    whole = block(x)
    only_itself = block(x, mask=torch.eye(5).bool())
    assert not torch.allclose(whole, only_itself, atol=1e-3)
    torch.testing.assert_close(whole[:, 0], only_itself[:, 0])
    stretched = block(x, positions=torch.arange(5) * 7)
    assert not torch.allclose(whole, stretched, atol=1e-4)
    cache = StaticCache(2, 2, 5, 8)
    with torch.no_grad():
        pieces = [block(piece, cache=cache) for piece in x.split([2, 3], dim=1)]
    assert cache.length == 5
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("norm_position", ["pre", "post"])
def test_block_dropout_hits_both_branches_and_not_the_residual(norm_position):
    block, x = make_block(norm_position, dropout=0.999999), torch.randn(1, 3, 16)
    expected = x
    if norm_position == "post":
        expected = block.ffn_norm(block.attention_norm(x))
    torch.testing.assert_close(block(x), expected)  # both branches fall silent
    block.eval()
    assert not torch.allclose(block(x), expected, atol=1e-3)
    assert torch.equal(block(x), block(x))


def test_an_unknown_wiring_is_refused():
    with pytest.raises(ValueError, match=r"norm_position must be one of pre, post; got 'per'"):
        make_block("per")
