"""Installing, switching, disabling and merging, whatever the adapter computes."""

import contextlib

import pytest
import torch
from torch import nn

from finetuning.adapters import (
    AdaptedLinear,
    adapters_disabled,
    candidate_layers,
    merge_in_place,
    merge_lora,
    set_adapter,
    unmerge_lora,
)
from finetuning.lora import LoRAConfig, apply_lora, lora_parameters


def two_adapters():
    model = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 3))
    for name in ("first", "second"):
        apply_lora(model, LoRAConfig(r=2, target=("0", "2")), name)
        with torch.no_grad():
            for parameter in lora_parameters(model):
                parameter.add_(torch.randn_like(parameter))
    return model


def test_an_unknown_adapter_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"no adapter 'secnd'; did you mean 'second'\? there are"):
        set_adapter(two_adapters(), "secnd")
    with pytest.raises(ValueError, match="there are: none"):
        set_adapter(nn.Sequential(nn.Linear(2, 2)), "default")


def test_switching_while_merged_is_refused():
    model = two_adapters()
    merge_in_place(model)
    with pytest.raises(ValueError, match="unmerge_lora"):
        set_adapter(model, "first")
    unmerge_lora(model)
    set_adapter(model, "first")


def test_disabled_is_the_base_and_comes_back_after_an_error():
    model, x = two_adapters(), torch.randn(2, 5)
    tuned = model(x)
    base = model[2].base_layer(nn.functional.gelu(model[0].base_layer(x)))
    with adapters_disabled(model):
        assert torch.equal(model(x), base)
    with contextlib.suppress(KeyError), adapters_disabled(model):
        raise KeyError
    assert torch.equal(model(x), tuned)


def test_disabled_wins_over_merged_and_nests():
    model, x = two_adapters(), torch.randn(2, 5)
    with adapters_disabled(model):
        base = model(x)
    merge_in_place(model)
    with adapters_disabled(model):
        with adapters_disabled(model):
            pass
        assert torch.equal(model(x), base)
    assert not torch.equal(model(x), base)


def test_training_while_merged_fails_loudly():
    model = two_adapters()
    merge_in_place(model)
    with pytest.raises(RuntimeError, match="does not require grad"):
        model(torch.randn(2, 5)).sum().backward()


def test_merging_a_model_without_adapters_is_refused():
    with pytest.raises(ValueError, match="no adapters"):
        merge_lora(nn.Sequential(nn.Linear(2, 2)))


def test_the_merged_weight_follows_the_model_and_is_never_saved():
    model = two_adapters()
    merge_in_place(model)
    model.to(torch.float64)
    assert model[0].merged_weight.dtype == torch.float64
    assert not any("merged" in name for name in model.state_dict())


def test_candidates_are_linear_layers_and_adapted_ones_once():
    model = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Sequential(nn.Linear(7, 3)))
    apply_lora(model, LoRAConfig(target=("0",)))
    assert list(candidate_layers(model)) == ["0", "2.0"]


def test_a_model_that_is_one_adapted_layer_merges_too():
    model = apply_lora(nn.Sequential(nn.Linear(5, 7)), LoRAConfig(target=("0",)))[0]
    assert type(merge_lora(model)) is nn.Linear


def test_a_subclass_must_say_what_its_weight_is():
    with pytest.raises(NotImplementedError):
        AdaptedLinear(nn.Linear(2, 2)).effective_weight()
