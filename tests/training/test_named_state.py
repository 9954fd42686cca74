"""Saving and loading whole checkpoints is tested in test_checkpoint.py; here the single steps."""

import pytest
import torch
from torch import nn

from training.distributed import ALONE
from training.named_state import (
    fitting_optimizer_state,
    fitting_weights,
    optimizer_state,
    plain_model,
    refuse_non_finite,
    trainable_state,
    write_into,
)
from training.optimizer import build_optimizer
from training.sharded_files import TensorSource, write_tensors


@pytest.fixture
def trained():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    optimizer = build_optimizer(model, learning_rate=0.01)
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


def test_what_is_frozen_is_not_saved_and_buffers_are(trained):
    model, optimizer = trained
    assert {name.split(".")[0] for name in trainable_state(model)} == {"1", "2"}
    assert "1.running_mean" in trainable_state(model)
    moments = optimizer_state(model, optimizer)
    assert {key.split("/")[1] for key in moments} == {"step", "exp_avg", "exp_avg_sq"}
    assert {key.split("/")[0] for key in moments} == {
        name for name, p in model.named_parameters() if p.requires_grad
    }


def test_shells_are_taken_off(trained):
    model, _ = trained
    shell = nn.Module()
    shell.module = model
    assert plain_model(shell) is model


def test_state_goes_back_by_name_whatever_the_order_of_groups(trained, tmp_path):
    model, optimizer = trained
    path = tmp_path / "optimizer.safetensors"
    write_tensors(optimizer_state(model, optimizer), path, ALONE, sharded=False)
    other = torch.optim.AdamW(reversed([p for p in model.parameters() if p.requires_grad]))
    other.load_state_dict(fitting_optimizer_state(TensorSource(path), model, other))
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            assert torch.equal(other.state[parameter][key], value)


def test_writing_keeps_the_parameters(trained, tmp_path):
    model, _ = trained
    path = tmp_path / "trainable.safetensors"
    expected = {name: tensor + 1 for name, tensor in trainable_state(model).items()}
    write_tensors(expected, path, ALONE, sharded=False)
    before = list(model.parameters())
    write_into(model, fitting_weights(TensorSource(path), model))
    assert all(a is b for a, b in zip(before, model.parameters(), strict=True))
    found = trainable_state(model)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_shape_that_would_broadcast_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    write_tensors({"weight": torch.ones(1, 3)}, path, ALONE, sharded=False)
    with pytest.raises(ValueError, match=r"weight has shape \(1, 3\), the model has \(2, 3\)"):
        fitting_weights(TensorSource(path), nn.Linear(3, 2, bias=False))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_numbers_are_named(value):
    with pytest.raises(ValueError, match="b holds NaN or infinite.*; step-000007 is not saved"):
        refuse_non_finite({"a": torch.ones(2), "b": torch.tensor([1.0, value])}, "step-000007")
    refuse_non_finite({"n": torch.tensor([1, 2])}, "step-000007")
