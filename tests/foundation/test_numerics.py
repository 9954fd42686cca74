"""The numerics checks: a right CPU passes, every plausible fault is red."""

import math

import pytest
import torch
import torch.nn.functional as F

from foundation.numerics import (
    NumericsResult,
    check_attention,
    check_exact_integers,
    check_gradients,
    check_matmul,
    check_numerics,
    matmul_flops_per_second,
    present_devices,
)

CPU = torch.device("cpu")
RIGHT_MATMUL = torch.matmul
RIGHT_ATTENTION = F.scaled_dot_product_attention


@pytest.mark.parametrize("device", present_devices(), ids=str)
def test_a_right_device_passes_every_check(device):
    results = list(check_numerics(device))
    assert [result.name for result in results if not result.ok] == []
    assert len(results) == 6


def test_the_bounds_are_not_idle():
    """A bound a thousand times the error would let everything through."""
    for result in check_numerics(CPU):
        assert result.bound <= 200 * max(result.error, 1e-7)


def test_nan_is_never_within_a_bound():
    assert not NumericsResult("x", "cpu", math.nan, 1.0).ok
    assert not NumericsResult("x", "cpu", 2.0, 1.0).ok
    assert NumericsResult("x", "cpu", 1.0, 1.0).ok


def round_like_tf32(tensor):
    """Keep 10 bits of the fraction, as tensor cores do when fast math is allowed."""
    bits = tensor.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


def tf32(a, b):
    return RIGHT_MATMUL(round_like_tf32(a), round_like_tf32(b))


def loses_the_last_term(a, b):
    return RIGHT_MATMUL(a[..., :-1], b[..., :-1, :])


def nan_in_one_corner(a, b):
    result = RIGHT_MATMUL(a, b)
    result[..., -1, -1] = math.nan
    return result


def stale_last_column(a, b):
    result = RIGHT_MATMUL(a, b)
    result[..., -1] = result[..., -2]
    return result


@pytest.mark.parametrize("wrong", [tf32, loses_the_last_term, nan_in_one_corner, stale_last_column])
def test_a_wrong_fp32_product_is_seen(monkeypatch, wrong):
    monkeypatch.setattr(torch, "matmul", wrong)
    assert not check_matmul(CPU, torch.float32).ok


@pytest.mark.parametrize("wrong", [loses_the_last_term, nan_in_one_corner, stale_last_column])
def test_exact_integers_forgive_nothing(monkeypatch, wrong):
    monkeypatch.setattr(torch, "matmul", wrong)
    result = check_exact_integers(CPU)
    assert not result.ok
    assert result.bound == 0


def test_a_sum_kept_in_bf16_is_seen(monkeypatch):
    def sums_in_bf16(a, b):
        total = torch.zeros(a.shape[0], b.shape[1], dtype=torch.bfloat16)
        for k in range(a.shape[1]):
            total += a[:, k, None] * b[None, k]
        return total

    assert check_matmul(CPU, torch.bfloat16).ok
    monkeypatch.setattr(torch, "matmul", sums_in_bf16)
    assert not check_matmul(CPU, torch.bfloat16).ok


def forgets_the_mask(q, k, v, **options):
    options |= {"is_causal": False, "attn_mask": None}
    return RIGHT_ATTENTION(q, k, v, **options)


def shifted_mask(q, k, v, *, attn_mask=None, is_causal=False, enable_gqa=False):
    """Each query also sees the next position: the future leaks by one."""
    if is_causal:
        length = q.shape[2]
        attn_mask = torch.ones(length, length).tril(1).bool()
    return RIGHT_ATTENTION(q, k, v, attn_mask=attn_mask, enable_gqa=enable_gqa)


def wrong_scale(q, k, v, **options):
    return RIGHT_ATTENTION(q, k, v, scale=1 / q.shape[-1], **options)


def wrong_groups(q, k, v, *, enable_gqa=False, **options):
    """Interleaves the key heads instead of repeating each."""
    repeats = q.shape[1] // k.shape[1]
    return RIGHT_ATTENTION(q, k.repeat(1, repeats, 1, 1), v.repeat(1, repeats, 1, 1), **options)


def softmax_without_maximum(q, k, v, *, attn_mask=None, is_causal=False, enable_gqa=False):
    repeats = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    seen = torch.ones(q.shape[2], q.shape[2]).tril().bool() if is_causal else attn_mask
    weights = scores.exp() * seen
    return weights / weights.sum(-1, keepdim=True) @ v


WRONG_ATTENTIONS = [forgets_the_mask, shifted_mask, wrong_scale, wrong_groups]


@pytest.mark.parametrize("wrong", [*WRONG_ATTENTIONS, softmax_without_maximum])
def test_wrong_attention_is_seen(monkeypatch, wrong):
    monkeypatch.setattr(F, "scaled_dot_product_attention", wrong)
    assert not check_attention(CPU, torch.float32).ok


@pytest.mark.parametrize("wrong", WRONG_ATTENTIONS)
def test_wrong_attention_in_bf16_is_seen(monkeypatch, wrong):
    monkeypatch.setattr(F, "scaled_dot_product_attention", wrong)
    assert not check_attention(CPU, torch.bfloat16).ok


class WrongBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * 0.5 * (1 + torch.erf(x / math.sqrt(2)))  # forgets x · density(x)


def test_a_wrong_backward_is_seen(monkeypatch):
    """Both the fp32 and the float64 gradient are wrong alike; finite differences are not."""
    monkeypatch.setattr(F, "gelu", WrongBackward.apply)
    assert not check_gradients(CPU).ok


def test_a_gradient_wrong_in_fp32_only_is_seen(monkeypatch):
    right = F.gelu

    def wrong(x):
        return WrongBackward.apply(x) if x.dtype == torch.float32 else right(x)

    monkeypatch.setattr(F, "gelu", wrong)
    assert not check_gradients(CPU).ok


def test_a_check_that_raises_is_a_problem_not_a_crash(monkeypatch):
    def unsupported(a, b):
        if a.dtype == torch.bfloat16:
            raise TypeError("BFloat16 is not supported here\nsecond line")
        return RIGHT_MATMUL(a, b)

    monkeypatch.setattr(torch, "matmul", unsupported)
    results = {result.name: result for result in check_numerics(CPU)}
    assert results["matmul bf16"].problem == "TypeError: BFloat16 is not supported here"
    assert not results["matmul bf16"].ok
    assert results["matmul fp32"].ok


def test_speed_is_positive_and_scales():
    flops = matmul_flops_per_second(CPU, torch.float32, size=64, seconds=0.01)
    assert 1e6 < flops < 1e15
