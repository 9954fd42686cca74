"""AWQ: folding changes no output, the search and the clipping never lose against rounding."""

import copy

import pytest
import torch

from gpt_model.config import GPTConfig
from gpt_model.model import GPT
from inference.awq import GRID, SHRINKS, Fold, best_scale, clipped, fold, folds_of
from inference.calibration import InputStatistics, output_errors
from transformer_basics.integer_weights import WeightFormat, decode, encode

CONFIG = GPTConfig(vocab_size=40, max_seq_len=16, dim=32, n_layers=1, n_heads=4)
MODELS = {
    "gpt2": (CONFIG, 3),
    "llama": (CONFIG.replace(norm="rmsnorm", gated_ffn=True, activation="silu", n_kv_heads=2,
                             position="rope", qk_norm=True), 4),
    "relu2": (CONFIG.replace(activation="relu2", n_kv_heads=1, head_dim=16, proj_bias=False,
                             qkv_bias=False), 4),
    "relu": (CONFIG.replace(activation="relu"), 4),
    "gelu, gated": (CONFIG.replace(activation="gelu", gated_ffn=True), 4),
    "post": (CONFIG.replace(norm_position="post"), 1),
}  # fmt: skip


def loud(columns, factor=30.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1000, columns, generator=generator)
    x[:, ::7] *= factor
    statistics = InputStatistics.empty(columns)
    statistics.add(x)
    return statistics


def random_scale(block, one):
    columns = block.get_submodule(one.targets[0]).in_features
    scale = 10 ** (2 * torch.rand(columns, generator=torch.Generator().manual_seed(3)) - 1)
    if one.repeats > 1:  # the same for the query heads that share a value head
        scale = scale.view(-1, one.repeats, one.head_dim)[:, :1]
        scale = scale.expand(-1, one.repeats, -1).reshape(-1)
    return scale


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_folding_is_exact_before_rounding(name):
    config, count = MODELS[name]
    torch.manual_seed(0)
    model = GPT(config).eval()
    for parameter in model.parameters():  # biases and gains that are not 0 and 1
        parameter.add_(0.1 * torch.randn_like(parameter))
    model = model.double()
    ids = torch.randint(40, (2, 11))
    wanted, block = model(ids).logits, model.blocks[0]
    before = {name: p.clone() for name, p in model.named_parameters()}
    assert len(folds_of(block)) == count
    for one in folds_of(block):
        columns = {t: block.get_submodule(t).weight.clone() for t in one.targets}
        made = fold(block, one, scale := random_scale(block, one))
        assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())  # copies
        changed = copy.deepcopy(model)
        for place, module in made.items():
            changed.blocks[0].set_submodule(place, module)
        torch.testing.assert_close(changed(ids).logits, wanted, atol=1e-6, rtol=1e-6)
        for target, weight in columns.items():
            torch.testing.assert_close(made[target].weight, weight * scale)
    # all of them together
    for one in folds_of(block):
        for place, module in fold(block, one, random_scale(block, one)).items():
            block.set_submodule(place, module)
    torch.testing.assert_close(model(ids).logits, wanted, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("factor", [1.0, 30.0])
def test_the_search_never_loses_against_rounding(bits, factor):
    statistics, form = loud(64, factor), WeightFormat(bits, 32)
    weights = list(torch.randn(2, 24, 64, generator=torch.Generator().manual_seed(1)))
    scale = best_scale(weights, statistics, form, Fold("norm", ("a", "b")))

    def total(s):
        wrong = 0.0
        for weight in weights:
            back = decode(encode(weight * s, form), 64) / s
            wrong += float(output_errors(weight, back, statistics).sum())
        return wrong

    ones = torch.ones(64)
    assert total(scale) <= total(ones) * (1 + 1e-6)
    if factor == 30.0:
        assert total(scale) < 0.6 * total(ones)
        # loud channels are enlarged, the others are not
        assert scale[::7].min() > 2 * scale[1::7].max()
    # it is the best of the grid
    size = statistics.mean_abs
    for alpha in GRID:
        other = size**alpha / (size**alpha).max().mul((size**alpha).min()).sqrt()
        assert total(scale) <= total(other.float()) * (1 + 1e-4)


def test_heads_that_share_a_value_head_share_the_scale():
    statistics = loud(32)
    one = Fold("v", ("out",), repeats=2, head_dim=8)
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(1))
    scale = best_scale([weight], statistics, WeightFormat(4, 8), one).view(2, 2, 8)
    assert torch.equal(scale[:, 0], scale[:, 1])
    assert scale.unique().numel() > 1


@pytest.mark.parametrize(
    "form", [WeightFormat(4, 16), WeightFormat(4, 24), WeightFormat(8, None, True)], ids=str
)
def test_clipping_never_loses_against_rounding(form):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(20, 40, generator=generator) ** 3  # heavy tails
    x = torch.randn(400, 40, generator=generator) @ torch.randn(40, 40, generator=generator)
    statistics = InputStatistics.empty(40)
    statistics.add(x)
    plain, ours = encode(weight, form), clipped(weight, statistics, form)
    errors = [output_errors(weight, decode(s, 40), statistics) for s in (ours, plain)]
    assert (errors[0] <= errors[1]).all()
    if form.bits == 4:
        assert errors[0].sum() < 0.99 * errors[1].sum()


def test_the_range_of_each_group_is_the_best_that_was_tried():
    """One group in a row: the choice by blocks of H is the choice by all of H."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 16, generator=generator) ** 3
    x = torch.randn(100, 16, generator=generator) @ torch.randn(16, 16, generator=generator)
    statistics, form = InputStatistics.empty(16), WeightFormat(4, None)
    statistics.add(x)
    found = output_errors(weight, decode(clipped(weight, statistics, form), 16), statistics)
    tried = [
        output_errors(weight, decode(encode(weight, form, s), 16), statistics) for s in SHRINKS
    ]
    torch.testing.assert_close(found, torch.stack(tried).amin(dim=0))


def test_channels_that_never_occur_do_no_harm():
    statistics = loud(32)
    for dead in (3, 14):
        statistics.hessian[dead] = statistics.hessian[:, dead] = 0
        statistics.mean_abs[dead] = 0
    weight, form = torch.randn(8, 32, generator=torch.Generator().manual_seed(1)), WeightFormat()
    for seen in (statistics, InputStatistics.empty(32)):
        scale = best_scale([weight], seen, form, Fold("norm", ("layer",)))
        assert torch.isfinite(scale).all()
        assert (scale > 0).all()
        assert torch.isfinite(decode(clipped(weight * scale, seen.divided(scale), form), 32)).all()
