"""Each activation as written against the fused kernel and against its formula."""

import math

import pytest
import torch

from transformer_basics.activations import ACTIVATIONS, LESSON_ACTIVATIONS, gelu, gelu_tanh, silu


def test_both_tables_know_the_same_names():
    assert list(ACTIVATIONS) == list(LESSON_ACTIVATIONS)
    assert set(ACTIVATIONS) == {"gelu", "gelu_tanh", "relu", "relu2", "silu"}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_written_out_equals_fused(name):
    x = torch.linspace(-8, 8, 1001, dtype=torch.float64, requires_grad=True)
    results = []
    for table in (ACTIVATIONS, LESSON_ACTIVATIONS):
        y = table[name](x)
        results.append((y, torch.autograd.grad(y.sum(), x)[0]))
    torch.testing.assert_close(results[0], results[1], atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("gelu", lambda x: x * 0.5 * math.erfc(-x / math.sqrt(2))),
        (
            "gelu_tanh",
            lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        ),
        ("relu", lambda x: max(x, 0.0)),
        ("relu2", lambda x: max(x, 0.0) ** 2),
        ("silu", lambda x: x / (1 + math.exp(-x))),
    ],
)
def test_values_by_hand(name, formula):
    points = [-5.0, -1.3, -0.1, 0.0, 0.2, 1.0, 6.5]
    expected = torch.tensor([formula(x) for x in points], dtype=torch.float64)
    for table in (ACTIVATIONS, LESSON_ACTIVATIONS):
        y = table[name](torch.tensor(points, dtype=torch.float64))
        torch.testing.assert_close(y, expected, atol=1e-12, rtol=1e-9)


def test_the_two_gelus_are_not_the_same():
    x = torch.tensor([2.7])
    assert 4e-4 < float((gelu(x) - gelu_tanh(x)).abs()) < 5e-4


def test_extreme_inputs_stay_finite():
    x = torch.tensor([-1e4, 1e4])
    for activate in (gelu, gelu_tanh, silu):
        assert activate(x).tolist() == [0.0, 1e4]
