"""A number becomes four or eight bits: right at the edges, packed as documented."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer_basics.integer_weights import (
    WeightFormat,
    decode,
    encode,
    grouped,
    pack,
    round_to_codes,
    scales_of,
    unpack,
)

FORMS = [
    WeightFormat(bits, group, zero)
    for bits in (4, 8)
    for group in (2, 6, 64, None)
    for zero in (False, True)
]


def there_and_back(weight, form):
    stored = encode(weight, form)
    return decode(stored, weight.shape[1]), stored


@pytest.mark.parametrize("bits", [4, 8])
def test_every_code_comes_back(bits):
    form = WeightFormat(bits, 1 << bits)
    codes = torch.arange(form.lowest, form.highest + 1.0)
    assert (codes[0], codes[-1]) == {4: (-8, 7), 8: (-128, 127)}[bits]
    for order in (codes, codes.flip(0), codes.roll(5)):
        for step in (1.0, -0.25, 2.0**-40, 2.0**60):
            back, stored = there_and_back(step * order[None], form)
            assert torch.equal(back, step * order[None])
            assert stored.scale.item() == step
            assert torch.equal(unpack(stored.packed)[0, 0], order.to(torch.int8))


@pytest.mark.parametrize("bits", [4, 8])
def test_every_code_of_a_range_on_one_side_comes_back_with_zero_points(bits):
    form = WeightFormat(bits, 1 << bits, zero_points=True)
    steps = torch.arange(float(1 << bits))
    for values, zero in ((steps, form.lowest), (-0.5 * steps, form.highest), (steps - 3, None)):
        back, stored = there_and_back(values[None], form)
        assert torch.equal(back, values[None])
        assert stored.zero.item() == (form.lowest + 3 if zero is None else zero)


def test_codes_are_packed_half_by_half():
    stored = encode(torch.tensor([[-8.0, 7.0, 0.0, -1.0]]), WeightFormat(4, 4))
    # codes + 8 are 0, 15, 8, 7: the low nibbles hold the first half of the group
    assert stored.packed.flatten().tolist() == [0 | 8 << 4, 15 | 7 << 4]
    assert stored.packed.dtype == torch.uint8
    assert encode(torch.tensor([[-128.0, 127.0]]), WeightFormat(8, 2)).packed.tolist() == [
        [[-128, 127]]
    ]


def test_packing_any_codes_and_back():
    every = torch.arange(256)
    codes = torch.stack((every % 16, every // 16), dim=-1).to(torch.int8) - 8  # all pairs
    assert torch.equal(unpack(pack(codes, 4)), codes)
    assert pack(codes, 4).unique().numel() == 256


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_zero_rows_and_zeros_stay_zero(form):
    weight = torch.randn(4, 70, generator=torch.Generator().manual_seed(0))
    weight[1] = 0.0
    weight[2, :64] = 0.0
    weight[3, ::3] = 0.0
    back, stored = there_and_back(weight, form)
    assert torch.equal(back[weight == 0], torch.zeros(int((weight == 0).sum())))
    assert back[2, 64:].abs().max() > 0
    assert torch.isfinite(stored.scale).all()


def nearest(weight, stored, form):
    """Try every code: the nearest representable value of each weight, by brute force."""
    group = form.group_of(weight.shape[1])
    codes = torch.arange(form.lowest, form.highest + 1.0, dtype=torch.float64)
    zero = torch.zeros_like(stored.scale) if stored.zero is None else stored.zero
    values = stored.scale.double()[..., None] * (codes - zero.double()[..., None])  # (N, G, 2^b)
    values = values.repeat_interleave(group, dim=1)[:, : weight.shape[1]]  # (N, K, 2^b)
    return (values - weight.double()[..., None]).abs().amin(dim=-1)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 5), st.integers(1, 200), st.sampled_from(FORMS), st.integers(0, 2**31)
)  # fmt: skip
def test_each_weight_goes_to_the_nearest_value_and_none_is_far(rows, columns, form, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    weight *= 10.0 ** torch.randint(-6, 7, (rows, 1), generator=generator)
    weight[torch.rand(rows, columns, generator=generator) < 0.01] *= 50.0  # outliers
    weight += torch.randint(-1, 2, (rows, 1), generator=generator) * weight.abs().amax() * 0.3
    back, stored = there_and_back(weight, form)
    group = form.group_of(columns)
    n_groups = -(-columns // group)
    assert stored.packed.shape == (rows, n_groups, group * form.bits // 8)
    assert stored.scale.shape == (rows, n_groups)
    assert (stored.zero is None) == (not form.zero_points)
    size = sum(part.nbytes for part in stored if part is not None)
    assert size == rows * form.row_bytes(columns)
    step = stored.scale.float().abs().repeat_interleave(group, dim=1)[:, :columns]
    error = (weight - back).abs()
    # half a step; at the clamped end a whole one, and the rounding of s to bfloat16
    assert (error <= (1.0 + (1 << form.bits) * 2.0**-9) * step + 1e-30).all()
    # nobody could do better with these scales
    best = nearest(weight, stored, form)
    assert (error.double() <= best + 1e-5 * step.double() + 1e-30).all()
    if not form.zero_points:  # the largest of each group is as exact as bfloat16
        for first in range(0, columns, group):
            part = weight[:, first : first + group]
            place = part.abs().argmax(dim=1, keepdim=True)
            found = back[:, first : first + group].gather(1, place)
            largest = part.gather(1, place)
            assert ((found - largest).abs() <= 2**-8 * largest.abs()).all()


def test_an_outlier_spoils_its_own_group_only():
    weight = torch.randn(1, 128, generator=torch.Generator().manual_seed(0))
    loud = weight.clone()
    loud[0, 3] = 100.0
    for bits in (4, 8):
        form = WeightFormat(bits, 64)
        quiet, noisy = (there_and_back(w, form)[0] for w in (weight, loud))
        assert torch.equal(quiet[:, 64:], noisy[:, 64:])
        rest = torch.arange(64) != 3
        errors = [(w - b)[:, :64][:, rest].norm() for w, b in ((weight, quiet), (loud, noisy))]
        assert errors[1] > 5 * errors[0]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("zero_points", [True, False])
def test_finer_groups_cost_less_error(bits, zero_points):
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    forms = [WeightFormat(bits, size, zero_points) for size in (8, 32, 64, None)]
    errors = [(weight - there_and_back(weight, form)[0]).norm() for form in forms]
    assert errors == sorted(errors)


def test_extreme_weights_neither_overflow_nor_vanish():
    for form in FORMS:
        huge = torch.tensor([[3.0e38, -3.0e38], [1e-38, -1e-38]])
        back, stored = there_and_back(huge, form)
        assert torch.isfinite(back).all()
        assert torch.isfinite(stored.scale).all()
        assert ((back - huge).abs() <= 0.15 * huge.abs()).all()


def test_a_narrower_range_clips_both_ends():
    weight = torch.tensor([[-8.0, 4.0, 2.0, 7.0]])
    for form in (WeightFormat(4, 4), WeightFormat(4, 4, zero_points=True)):
        back = decode(encode(weight, form, shrink=0.5), 4)
        assert back.min() >= -4.2
        assert back.max() <= 4.2
        assert (back[0, 2] - 2.0).abs() <= 0.5


def test_codes_follow_the_scales_that_are_stored():
    form = WeightFormat(8, 4)
    groups = grouped(torch.tensor([[1.0, 0.3, -0.9, 0.777]]), form)
    scale, zero = scales_of(groups, form)
    exact = groups.abs().max() / 128
    assert scale.float().abs().item() != exact or scale.dtype == torch.bfloat16
    codes = round_to_codes(groups, scale, zero, form)
    assert torch.equal(codes, (groups / scale.float()).round().clamp(-128, 127).to(torch.int8))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3,), "bits must be one of 4, 8; got '3'"),
        ((4, 0), "group_size must be an integer >= 2, got 0"),
        ((4, 7), "group_size must be even, got 7"),
        ((8, 64, 1), "zero_points must be true or false, got 1"),
    ],
)
def test_formats_that_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        WeightFormat(*arguments)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_damaged_weight_is_refused(bad):
    with pytest.raises(ValueError, match="holds NaN or infinite values"):
        encode(torch.tensor([[1.0, bad]]), WeightFormat())
