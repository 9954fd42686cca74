"""Four-bit linear layers: right at the edges, as small as promised, gradients through them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gpt_model.config import GPTConfig
from gpt_model.model import GPT
from inference.quantization import (
    QuantizedLinear,
    dequantize,
    dequantize_groups,
    quantize,
    quantize_groups,
    quantized_layers,
)


def there_and_back(weight, group_size):
    packed, scale = quantize_groups(weight, group_size)
    return dequantize_groups(packed, scale, weight.shape[1], torch.float32), packed, scale


def test_every_code_comes_back():
    codes = torch.arange(-8.0, 8.0)
    for order in (codes, codes.flip(0), codes.roll(5)):
        for step in (1.0, -0.25, 2.0**-40):
            back, packed, scale = there_and_back(step * order[None], 16)
            assert torch.equal(back, step * order[None])
            assert scale.float().item() == step
            assert packed.shape == (1, 1, 8)
            assert packed.dtype == torch.uint8


def test_codes_are_packed_half_by_half():
    _, packed, _ = there_and_back(torch.tensor([[-8.0, 7.0, 0.0, -1.0]]), 4)
    # codes + 8 are 0, 15, 8, 7: the low nibbles hold the first half of the group
    assert packed.flatten().tolist() == [0 | 8 << 4, 15 | 7 << 4]


def test_zero_rows_stay_zero():
    weight = torch.randn(4, 70)
    weight[1] = 0.0
    weight[2, :64] = 0.0
    back, _, scale = there_and_back(weight, 64)
    assert torch.equal(back[1], torch.zeros(70))
    assert torch.equal(back[2, :64], torch.zeros(64))
    assert back[2, 64:].abs().max() > 0
    assert torch.isfinite(scale).all()


@settings(deadline=None)
@given(
    st.integers(1, 5), st.integers(1, 200), st.sampled_from([2, 6, 16, 64]), st.integers(0, 2**31)
)
def test_the_error_is_half_a_step_and_the_largest_is_kept(rows, columns, group, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    weight *= 10.0 ** torch.randint(-6, 7, (rows, 1), generator=generator)
    back, packed, scale = there_and_back(weight, group)
    n_groups = -(-columns // group)
    assert packed.shape == (rows, n_groups, group // 2)
    assert scale.shape == (rows, n_groups)
    step = scale.float().abs().repeat_interleave(group, dim=1)[:, :columns]
    clamped = (
        back / step.clamp_min(1e-30) * scale.float().repeat_interleave(group, 1)[:, :columns].sign()
        > 6.5
    )
    error = (weight - back).abs()
    slack = 1e-5 * step
    assert (error[~clamped] <= (0.5 * step + slack)[~clamped]).all()
    assert (error <= 1.04 * step + slack).all()  # +8 is clamped to 7; s itself is rounded to bf16
    # the largest of each group is as exact as bf16
    for first in range(0, columns, group):
        part = weight[:, first : first + group]
        place = part.abs().argmax(dim=1, keepdim=True)
        largest = part.gather(1, place)
        found = back[:, first : first + group].gather(1, place)
        assert ((found - largest).abs() <= 2**-8 * largest.abs()).all()


def test_a_finer_group_never_costs_more_error_on_average():
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    errors = [(weight - there_and_back(weight, size)[0]).norm() for size in (8, 32, 64, 256)]
    assert errors == sorted(errors)


@pytest.mark.parametrize(("columns", "group"), [(64, 64), (128, 64), (70, 64), (33, 8), (1, 2)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_is_the_linear_layer_of_what_it_stores(columns, group, bias):
    torch.manual_seed(0)
    linear = nn.Linear(columns, 24, bias=bias)
    layer = QuantizedLinear(linear, group)
    assert layer.weight.shape == (24, columns)
    x = torch.randn(2, 5, columns, requires_grad=True)
    wanted = nn.functional.linear(x, layer.weight, linear.bias)
    torch.testing.assert_close(layer(x), wanted, atol=1e-5, rtol=1e-5)
    slope = torch.randn_like(wanted)
    inputs = [x, *([linear.bias] if bias else [])]
    for left, right in zip(
        torch.autograd.grad(layer(x), inputs, slope),
        torch.autograd.grad(wanted, inputs, slope),
        strict=True,
    ):
        torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-5)


def test_gradcheck():
    layer = QuantizedLinear(nn.Linear(10, 3), 4).double()
    layer.scale = layer.scale.to(torch.float64)
    x = torch.randn(4, 10, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))


def test_the_dequantized_weight_is_not_kept_for_the_backward_pass():
    layer = QuantizedLinear(nn.Linear(256, 128, bias=False))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(torch.randn(3, 256, requires_grad=True))
    assert {t.data_ptr() for t in kept} == {layer.packed.data_ptr(), layer.scale.data_ptr()}


def test_mixed_precision_multiplies_in_bf16():
    layer = QuantizedLinear(nn.Linear(128, 32))
    x = torch.randn(7, 128, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(x)
    assert output.dtype == torch.bfloat16
    exact = nn.functional.linear(x, layer.weight, layer.bias)
    assert (output.float() - exact).norm() < 0.01 * exact.norm()
    (slope,) = torch.autograd.grad(output.float().square().sum(), x)
    (wanted,) = torch.autograd.grad(exact.square().sum(), x)
    assert slope.dtype == torch.float32
    assert (slope - wanted).norm() < 0.02 * wanted.norm()


@pytest.mark.parametrize("group", [16, 64, 128])
def test_memory_is_as_theory_says(group):
    layer = QuantizedLinear(nn.Linear(256, 96, bias=False), group)
    assert 8 * layer.n_bytes() == 256 * 96 * (4 + 16 / group)
    assert list(layer.parameters()) == []


def tiny(**changes):
    torch.manual_seed(0)
    return GPT(
        GPTConfig(vocab_size=50, max_seq_len=32, dim=64, n_layers=2, n_heads=2, **changes)
    ).eval()


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_is_quantized_saved_and_restored(tied):
    model = tiny(tie_embeddings=tied)
    embedding, ids = model.token_embedding.weight.clone(), torch.randint(50, (2, 9))
    before = model(ids).logits
    assert quantize(model) is model
    names = set(quantized_layers(model))
    assert len(names) == 2 * 6
    assert not any("lm_head" in name for name in names)
    assert torch.equal(model.token_embedding.weight, embedding)
    after = model(ids).logits
    assert 0 < (after - before).norm() < 0.3 * before.norm()
    # its state dict holds everything
    again = quantize(tiny(tie_embeddings=tied, init_std=0.1))
    assert not torch.equal(again(ids).logits, after)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(ids).logits, after)
    # and back to plain layers with the same outputs
    plain = dequantize(model)
    assert quantized_layers(plain) == {}
    torch.testing.assert_close(plain(ids).logits, after, atol=1e-5, rtol=1e-5)
    assert tiny(tie_embeddings=tied).state_dict().keys() == plain.state_dict().keys()


def test_an_untied_head_is_quantized_only_when_asked():
    assert "lm_head" in quantized_layers(quantize(tiny(tie_embeddings=False), skip=()))
    assert "lm_head" not in quantized_layers(quantize(tiny(tie_embeddings=True), skip=()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 3}, "bits must be one of 4; got '3'"),
        ({"group_size": 0}, "group_size must be an integer >= 2, got 0"),
        ({"group_size": 7}, "group_size must be even, got 7"),
        ({"skip": ("q_proj", "k_proj", "v_proj", "out_proj", "up_proj", "down_proj", "lm_head")},
         "no Linear layer to quantize"),
    ],
)  # fmt: skip
def test_mistakes_are_refused_and_leave_the_model_alone(options, message):
    model = tiny()
    with pytest.raises(ValueError, match=message):
        quantize(model, **options)
    assert quantized_layers(model) == {}


def test_a_damaged_weight_is_named():
    model = tiny()
    with torch.no_grad():
        model.blocks[1].feed_forward.up_proj.weight[3, 4] = float("nan")
    with pytest.raises(ValueError, match=r"blocks\.1\.feed_forward\.up_proj: .* holds NaN"):
        quantize(model)
    assert quantized_layers(model) == {}
