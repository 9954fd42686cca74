"""Backward passes written by hand, against autograd and gradcheck; when they are chosen."""

import pytest
import torch
import torch.nn.functional as F

from gpt_model.config import preset
from gpt_model.model import GPT
from transformer_basics import layers, written_backward
from transformer_basics.layers import RMSNorm
from transformer_basics.rotary import RotaryEmbedding, rotate_half
from transformer_basics.speed_ups import SPEED_UPS, without
from transformer_basics.written_backward import relu_squared, rms_norm, rotate


def leaf(*shape, dtype=torch.float64):
    torch.manual_seed(sum(shape))
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


def table(length, size):
    angles = torch.rand(length, size // 2, dtype=torch.float64)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1), torch.cat((sin, sin), -1)


def test_gradcheck():
    assert torch.autograd.gradcheck(rms_norm, (leaf(2, 3, 5), leaf(5), 0.1))
    cos, signed_sin, _ = table(4, 6)
    assert torch.autograd.gradcheck(lambda x: rotate(x, cos, signed_sin), (leaf(2, 3, 4, 6),))
    assert torch.autograd.gradcheck(relu_squared, (leaf(4, 5),))


def compare(mine, right, wanted, dtype, tolerance):
    assert mine.dtype is dtype
    slope = torch.randn(right.shape).to(right.dtype)
    pairs = [(mine.detach(), right.detach())]
    pairs += zip(
        torch.autograd.grad(mine, wanted, slope.to(dtype)),
        torch.autograd.grad(right, wanted, slope),
        strict=True,
    )
    for a, b in pairs:
        assert (a.double() - b.double()).norm() <= tolerance * b.double().norm()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 0.01)])
def test_values_and_gradients_equal_the_formulas(dtype, tolerance):
    x, weight = leaf(2, 3, 8, 6, dtype=dtype), leaf(6, dtype=torch.float32)
    wide, gamma = x.double(), weight.double()
    expected = wide * (wide.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * gamma
    compare(rms_norm(x, weight, 1e-5), expected, [x, weight], dtype, tolerance)
    cos, signed_sin, sin = table(8, 6)
    expected = x.double() * cos + rotate_half(x.double()) * sin
    compare(rotate(x, cos.float(), signed_sin.float()), expected, [x], dtype, tolerance)
    compare(relu_squared(x), F.relu(x.double()).square(), [x], dtype, tolerance)


def test_a_frozen_gain_gets_no_gradient():
    x, weight = leaf(2, 4), torch.ones(4, dtype=torch.float64)
    (found,) = torch.autograd.grad(rms_norm(x, weight, 1e-6).sum(), x)
    (right,) = torch.autograd.grad(layers.rms_norm(x, weight, 1e-6).sum(), x)
    assert torch.allclose(found, right)


def test_the_model_uses_them_in_training_only(monkeypatch):
    calls = []
    for name in ("rms_norm", "rotate", "relu_squared"):
        original = getattr(written_backward, name)
        monkeypatch.setattr(
            written_backward,
            name,
            lambda *a, name=name, original=original: calls.append(name) or original(*a),
        )
    model = GPT(preset("modern-micro", vocab_size=9, n_layers=1, dim=32, max_seq_len=8))
    ids = torch.zeros(1, 5, dtype=torch.long)
    with torch.no_grad():
        model(ids)
    with without("backward"):
        model(ids)
    assert calls == []
    model(ids)
    # two norms, the last one, q and k; two rotations; one activation
    assert sorted(calls) == ["relu_squared"] + 5 * ["rms_norm"] + 2 * ["rotate"]


def test_training_is_the_same_up_to_rounding():
    weights = []
    for off in ((), ("backward",)):
        torch.manual_seed(0)
        model = GPT(preset("modern-micro", vocab_size=9, n_layers=2, dim=32, max_seq_len=16))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        ids = torch.arange(64).view(4, 16) % 9
        with without(*off):
            for _ in range(5):
                model(ids, ids.roll(-1, 1)).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        weights.append([p.detach() for p in model.parameters()])
    assert all(SPEED_UPS.values())
    for a, b in zip(*weights, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_left_padded_positions_turn_by_rows():
    """Tables of (B, 1, T, d) broadcast over the heads, in both directions."""
    rotary, x = RotaryEmbedding(6), leaf(2, 3, 4, 6, dtype=torch.float32)
    positions = torch.tensor([[0, 0, 1, 2], [0, 1, 2, 3]])
    slope = torch.randn_like(x)
    found = torch.autograd.grad(rotary(x, positions), x, slope)[0]
    with without("backward"):
        right = torch.autograd.grad(rotary(x, positions), x, slope)[0]
    assert torch.allclose(found, right, atol=1e-6)


def test_norm_layer_in_half_precision():
    norm, x = RMSNorm(8), leaf(3, 8, dtype=torch.bfloat16)
    assert norm(x).dtype is torch.bfloat16
