import pytest
import torch
from torch import nn

from training.optimizer import (
    OPTIMIZERS,
    adamw_written_out,
    build_optimizer,
    decay_groups,
    set_learning_rate,
)


def decays(optimizer, model):
    """Name → weight decay, for the parameters that the optimizer has."""
    by_id = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    names = model.named_parameters()
    return {name: by_id[id(p)] for name, p in names if id(p) in by_id}


def test_matrices_decay_and_vectors_do_not(tiny_model):
    model = tiny_model(qkv_bias=True)
    found = decays(build_optimizer(model, weight_decay=0.1), model)
    assert set(found) == {name for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        assert found[name] == (0.1 if parameter.ndim >= 2 else 0.0), name
    assert found["token_embedding.weight"] == 0.1
    assert found["final_norm.weight"] == 0.0


def test_a_tied_matrix_is_updated_once(tiny_model):
    model = tiny_model()
    assert model.lm_head.weight is model.token_embedding.weight
    chosen = [p for group in decay_groups(model, 0.1) for p in group["params"]]
    assert len({id(p) for p in chosen}) == len(chosen)
    assert sum(p.numel() for p in chosen) == model.num_parameters()


def test_frozen_parameters_have_no_state(tiny_model):
    model = tiny_model()
    model.requires_grad_(False)
    model.final_norm.weight.requires_grad_(True)
    optimizer = build_optimizer(model)
    assert decays(optimizer, model) == {"final_norm.weight": 0.0}
    assert len(optimizer.param_groups) == 1  # no empty group


def test_a_model_with_nothing_to_train_is_refused(tiny_model):
    with pytest.raises(ValueError, match="no trainable parameter"):
        build_optimizer(tiny_model().requires_grad_(False))


@pytest.mark.parametrize("fused", [True, False])
def test_the_formula_equals_the_library(fused):
    weight = nn.Linear(7, 5, bias=False)
    mine = weight.weight.detach().clone()
    first, second = torch.zeros_like(mine), torch.zeros_like(mine)
    settings = {"betas": (0.8, 0.97), "eps": 1e-6, "weight_decay": 0.3}
    optimizer = build_optimizer(weight, fused=fused, **settings)
    for step in range(1, 51):
        gradient = torch.randn(5, 7) * 10.0 ** (step % 5 - 3)
        weight.weight.grad = gradient
        set_learning_rate(optimizer, 0.01 * step)
        optimizer.step()
        rate = 0.01 * step
        adamw_written_out(mine, gradient, first, second, step, learning_rate=rate, **settings)
    assert torch.allclose(weight.weight, mine, atol=1e-6)


def test_decay_is_decoupled_from_the_gradient():
    """A zero gradient still shrinks the matrix, by exactly 1 - rate · decay."""
    layer = nn.Linear(3, 3)
    before, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    optimizer = build_optimizer(layer, learning_rate=0.1, weight_decay=0.5)
    layer.weight.grad, layer.bias.grad = torch.zeros(3, 3), torch.zeros(3)
    optimizer.step()
    assert torch.allclose(layer.weight, before * 0.95)
    assert torch.equal(layer.bias, bias)


def test_fused_is_the_default_where_it_works():
    assert build_optimizer(nn.Linear(2, 2)).defaults["fused"] is True
    assert build_optimizer(nn.Linear(2, 2), fused=False).defaults["fused"] is False


def test_a_group_may_scale_the_learning_rate():
    optimizer = build_optimizer(nn.Linear(2, 2))
    optimizer.param_groups[0]["lr_scale"] = 10.0
    set_learning_rate(optimizer, 1e-3)
    assert [group["lr"] for group in optimizer.param_groups] == [1e-2, 1e-3]


def test_another_optimizer_needs_one_entry(monkeypatch):
    def make_sgd(groups, settings):
        return torch.optim.SGD(groups, lr=settings.learning_rate)

    monkeypatch.setitem(OPTIMIZERS, "sgd", make_sgd)
    assert isinstance(build_optimizer(nn.Linear(2, 2), name="sgd"), torch.optim.SGD)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"name": "adam"},
            "optimizer must be one of adamw, muon; got 'adam'; did you mean 'adamw'",
        ),
        ({"learning_rate": 0.0}, "learning_rate must be a finite number > 0, got 0.0"),
        ({"weight_decay": -0.1}, "weight_decay must be a finite number >= 0, got -0.1"),
    ],
)
def test_unreasonable_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build_optimizer(nn.Linear(2, 2), **options)
