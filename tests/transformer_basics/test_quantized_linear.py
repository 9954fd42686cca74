"""Layers over integer weights: the same function and gradients as with the restored weights."""

import copy

import pytest
import torch
from torch import nn

from transformer_basics.embeddings import TokenEmbedding
from transformer_basics.integer_weights import WeightFormat, encode
from transformer_basics.quantized_linear import (
    QuantizedEmbedding,
    QuantizedLinear,
    quantized_layers,
    quantized_parts,
)

FORMS = [
    *(WeightFormat(4, 64), WeightFormat(8, 64), WeightFormat(8, None)),
    *(WeightFormat(4, 8, True), WeightFormat(8, 16, True)),
]


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("columns", [64, 128, 70, 33, 1])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_is_the_linear_layer_of_what_it_stores(columns, form, bias):
    torch.manual_seed(0)
    linear = nn.Linear(columns, 24, bias=bias)
    layer = QuantizedLinear.from_linear(linear, form)
    assert layer.weight.shape == (24, columns)
    assert (layer.weight - linear.weight).norm() < 0.15 * linear.weight.norm()
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


@pytest.mark.parametrize("form", [WeightFormat(4, 4), WeightFormat(8, None, True)], ids=str)
def test_gradcheck(form):
    layer = QuantizedLinear.from_linear(nn.Linear(10, 3), form).double()
    x = torch.randn(4, 10, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))


def test_the_dequantized_weight_is_not_kept_for_the_backward_pass():
    layer = QuantizedLinear.from_linear(nn.Linear(256, 128, bias=False), WeightFormat(4, 64, True))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(torch.randn(3, 256, requires_grad=True))
    assert {t.data_ptr() for t in kept} == {part.data_ptr() for part in layer.stored}


def test_mixed_precision_multiplies_in_bf16():
    layer = QuantizedLinear.from_linear(nn.Linear(128, 32), WeightFormat())
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
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("zero_points", [True, False])
def test_memory_is_as_theory_says(group, bits, zero_points):
    form = WeightFormat(bits, group, zero_points)
    layer = QuantizedLinear.from_linear(nn.Linear(256, 96, bias=False), form)
    assert 8 * layer.n_bytes() == 256 * 96 * (bits + (16 + 8 * zero_points) / group)
    assert list(layer.parameters()) == []


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_table_restores_only_the_rows_it_is_asked_for(form):
    torch.manual_seed(0)
    stored = encode(torch.randn(50, 70), form)
    table = QuantizedEmbedding(50, 70, form, stored)
    ids = torch.tensor([[0, 49, 7], [7, 7, 1]])
    plain = TokenEmbedding(50, 70)
    plain.weight.data = table.weight
    assert torch.equal(table(ids), plain(ids))
    assert table(ids).shape == (2, 3, 70)


def test_types_and_devices():
    form = WeightFormat(8, 16, True)
    table = QuantizedEmbedding(9, 32, form, encode(torch.randn(9, 32), form))
    layer = QuantizedLinear.from_linear(nn.Linear(32, 8), form)
    model = nn.Sequential(table, layer)
    exact = layer.scale.clone()
    for dtype in (torch.float16, torch.float64, torch.bfloat16):
        model.to(dtype)
        assert (table.dtype, layer.bias.dtype) == (dtype, dtype)
        assert model(torch.tensor([[3, 4]])).dtype == dtype
        # float16 would lose small scales, float32 would cost memory
        assert (layer.scale.dtype, table.zero.dtype) == (torch.bfloat16, torch.int8)
        assert torch.equal(layer.scale, exact)
    assert layer.to("meta").scale.device.type == "meta"
    assert layer.to_empty(device="cpu").scale.dtype == torch.bfloat16


def test_a_shell_has_the_shapes_and_takes_the_numbers():
    for form in FORMS:
        layer = QuantizedLinear.from_linear(nn.Linear(70, 24), form)
        with torch.device("meta"):
            shell = QuantizedLinear(70, 24, form, nn.Parameter(torch.empty(24)))
        for name, tensor in layer.state_dict().items():
            wanted = shell.state_dict()[name]
            assert (tensor.shape, tensor.dtype) == (wanted.shape, wanted.dtype)
        shell.load_state_dict(layer.state_dict(), assign=True)
        x = torch.randn(3, 70)
        assert torch.equal(shell(x), layer(x))


def test_a_shared_table_is_one_table():
    form = WeightFormat(8, 16)
    table = QuantizedEmbedding(9, 32, form, encode(torch.randn(9, 32), form))
    head = QuantizedLinear(32, 9, form)
    head.share(table)
    model = nn.ModuleDict({"table": table, "head": head})
    assert head.packed is table.packed
    assert torch.equal(head.weight, table.weight)
    assert list(quantized_parts(model)) == ["table", "head"]
    assert list(quantized_layers(model)) == ["head"]
    copied = copy.deepcopy(model)
    assert copied["head"].packed is copied["table"].packed
