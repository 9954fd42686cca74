"""GPTQ against its definition, done by brute force; never worse than rounding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.calibration import InputStatistics, output_errors
from inference.gptq import COLUMNS_AT_ONCE, better_rows, compensate, gptq, inverse_factor
from transformer_basics.integer_weights import (
    Packed,
    WeightFormat,
    decode,
    encode,
    restore,
    round_to_codes,
    scales_of,
    unpack,
)


def correlated(columns, rank, seed=0, n=400):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, rank, generator=generator) @ torch.randn(rank, columns, generator=generator)
    statistics = InputStatistics.empty(columns)
    statistics.add(x + 0.1 * torch.randn(n, columns, generator=generator))
    return statistics


def by_least_squares(weight, hessian, form, order, damping):
    """The definition: fix one column, then solve for the best of all columns that are left."""
    columns = weight.shape[1]
    group = form.group_of(columns)
    damped = hessian + damping * hessian.diagonal().mean() * torch.eye(columns).double()
    original = weight.double()
    left, fixed = original.clone(), torch.zeros_like(original)
    codes, rules = torch.zeros(weight.shape, dtype=torch.int8), {}
    ordered = order.tolist() == list(range(columns))
    for step, j in enumerate(order.tolist()):
        g = j // group
        if g not in rules:
            source = left if ordered else original
            rules[g] = scales_of(source[:, g * group : (g + 1) * group].float(), form)
        codes[:, j] = round_to_codes(left[:, j : j + 1].float(), *rules[g], form)[:, 0]
        fixed[:, j] = restore(codes[:, j : j + 1], *rules[g], torch.float64)[:, 0]
        done, free = order[: step + 1], order[step + 1 :]
        if len(free):
            # minimise (w - ŵ)H(w - ŵ)ᵀ over ŵ_free: H_ff·(w - ŵ)_f = -H_fd·(w - ŵ)_d
            gap = (original - fixed)[:, done]
            right = damped[free][:, done] @ gap.t()
            left[:, free] = original[:, free] + torch.linalg.solve(damped[free][:, free], right).t()
    return codes, rules


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize(
    "form",
    [WeightFormat(4, 8), WeightFormat(4, None), WeightFormat(8, 6), WeightFormat(4, 8, True)],
    ids=str,
)
def test_the_cholesky_form_chooses_the_codes_of_the_definition(form, act_order):
    statistics = correlated(26, 6)
    weight = torch.randn(5, 26, generator=torch.Generator().manual_seed(1))
    order = torch.arange(26)
    if act_order:
        order = torch.argsort(statistics.hessian.diagonal(), descending=True)
    wanted, rules = by_least_squares(weight, statistics.hessian, form, order, 0.01)
    found = compensate(weight, statistics.hessian, form, act_order, 0.01)
    assert torch.equal(unpack(found.packed).flatten(1)[:, :26], wanted)
    for g, (scale, zero) in rules.items():
        assert torch.equal(found.scale[:, g], scale[:, 0])
        assert zero is None or torch.equal(found.zero[:, g], zero[:, 0])
    # and they are not those of plain rounding
    assert not torch.equal(unpack(encode(weight, form).packed).flatten(1)[:, :26], wanted)


@pytest.mark.parametrize("columns", [COLUMNS_AT_ONCE + 40, 2 * COLUMNS_AT_ONCE])
@pytest.mark.parametrize("group", [48, 64, None])
def test_pushing_errors_many_columns_at_once_changes_nothing(columns, group):
    """Groups of 48 and of a whole row reach over the ends of the batches."""
    statistics = correlated(columns, 20)
    weight = torch.randn(3, columns, generator=torch.Generator().manual_seed(2))
    form = WeightFormat(4, group)
    wanted, _ = by_least_squares(weight, statistics.hessian, form, torch.arange(columns), 0.01)
    found = compensate(weight, statistics.hessian, form, False, 0.01)
    assert torch.equal(unpack(found.packed).flatten(1)[:, :columns], wanted)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 6), st.integers(2, 70), st.integers(1, 20), st.integers(0, 2**31),
    st.sampled_from([WeightFormat(4, 16), WeightFormat(8, None), WeightFormat(4, 6, True)]),
    st.booleans(),
)  # fmt: skip
def test_no_row_is_ever_worse_than_rounding(rows, columns, rank, seed, form, act_order):
    statistics = correlated(columns, rank, seed, n=2 * columns)
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    plain, ours = encode(weight, form), gptq(weight, statistics, form, act_order=act_order)
    errors = [output_errors(weight, decode(s, columns), statistics) for s in (ours, plain)]
    assert (errors[0] <= errors[1] + 1e-12).all()
    assert ours.packed.shape == plain.packed.shape
    assert (ours.scale.dtype, ours.packed.dtype) == (plain.scale.dtype, plain.packed.dtype)


@pytest.mark.parametrize("act_order", [False, True])
def test_correlated_inputs_let_it_do_much_better(act_order):
    statistics = correlated(128, 10, n=2000)
    weight, form = torch.randn(32, 128), WeightFormat(4, 32)
    plain, ours = encode(weight, form), gptq(weight, statistics, form, act_order=act_order)
    before, after = (output_errors(weight, decode(s, 128), statistics).sum() for s in (plain, ours))
    assert after < 0.2 * before


def test_the_better_of_two_is_chosen_row_by_row():
    weight = torch.eye(2, 4)
    statistics = InputStatistics(torch.eye(4).double(), torch.ones(4).double(), 1)
    form = WeightFormat(4, 2, True)
    good = encode(weight, form)
    bad = Packed(good.packed.clone(), good.scale * 3, good.zero)
    mixed = Packed(*(torch.stack((a[0], b[1])) for a, b in zip(good, bad, strict=True)))
    other = Packed(*(torch.stack((b[0], a[1])) for a, b in zip(good, bad, strict=True)))
    for first, second in ((mixed, other), (other, mixed)):
        found = better_rows(weight, statistics, first, second)
        assert all(torch.equal(a, b) for a, b in zip(found, good, strict=True))


def test_the_factor_is_that_of_the_inverse():
    hessian = correlated(20, 30).hessian
    upper = inverse_factor(hessian, 0.05)
    damped = hessian + 0.05 * hessian.diagonal().mean() * torch.eye(20).double()
    torch.testing.assert_close(upper.t() @ upper @ damped, torch.eye(20).double())
    assert torch.equal(upper, upper.triu())


def test_dimensions_that_never_occur_are_rounded():
    statistics = correlated(12, 5)
    dead = [2, 7]
    statistics.hessian[dead] = 0
    statistics.hessian[:, dead] = 0
    weight, form = (
        torch.randn(3, 12, generator=torch.Generator().manual_seed(0)),
        WeightFormat(8, 2),
    )
    for damping in (0.0, 0.01):
        stored = gptq(weight, statistics, form, damping=damping)
        error = (decode(stored, 12) - weight)[:, dead].abs()
        assert error.max() < 0.01
    # nothing at all was seen: all of it is rounded
    nothing = InputStatistics.empty(12)
    assert torch.equal(gptq(weight, nothing, form).packed, encode(weight, form).packed)


def test_what_cannot_be_used_is_refused():
    form, weight = WeightFormat(), torch.randn(2, 4)
    statistics = correlated(4, 4)
    weight[0, 1] = float("nan")
    with pytest.raises(ValueError, match="weight holds NaN"):
        gptq(weight, statistics, form)
    statistics.hessian[0, 0] = float("nan")
    with pytest.raises(ValueError, match="not positive definite; use more damping"):
        gptq(torch.randn(2, 4), statistics, form)
