"""The formula, the start at zero, the variants, and applying them to a model."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from finetuning.adapters import adapted_layers
from finetuning.lora import (
    LoRAConfig,
    LoRALinear,
    adapter_names,
    apply_lora,
    count_trainable,
    lora_parameters,
    merge_in_place,
    merge_lora,
    set_adapter,
    unmerge_lora,
)
from gpt_model.config import GPTConfig
from gpt_model.model import GPT

ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "out_proj", "up_proj", "down_proj")


def tiny_gpt(**changes):
    fields = dict(vocab_size=29, max_seq_len=16, dim=24, n_layers=2, n_heads=3, n_kv_heads=1)
    return GPT(GPTConfig(**{**fields, "ffn_dim": 40, **changes}))


def layer(d_in=6, d_out=4, bias=True, dtype=torch.float64, **config):
    model = nn.Sequential(nn.Linear(d_in, d_out, bias=bias, dtype=dtype))
    apply_lora(model, LoRAConfig(**{"r": 3, "target": ("0",), **config}))
    with torch.no_grad():
        for parameter in lora_parameters(model):
            parameter.add_(torch.randn_like(parameter) * 0.5)
    return model[0]


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5), st.booleans(), st.booleans())
def test_output_is_the_formula(d_in, d_out, rank, bias, rslora):
    module = layer(d_in, d_out, bias, r=rank, alpha=5.0, use_rslora=rslora)
    adapter, x = module.low_rank(), torch.randn(2, 3, d_in, dtype=torch.float64)
    assert adapter.A.shape == (d_in, rank)
    assert adapter.B.shape == (rank, d_out)
    scaling = 5.0 / (math.sqrt(rank) if rslora else rank)
    expected = x @ module.base_layer.weight.T + scaling * (x @ adapter.A @ adapter.B)
    if bias:
        expected = expected + module.base_layer.bias
    torch.testing.assert_close(module(x), expected)


@pytest.mark.parametrize("bias", [True, False])
def test_dora_output_is_magnitude_times_direction(bias):
    module = layer(bias=bias, use_dora=True)
    adapter, x = module.low_rank(), torch.randn(5, 6, dtype=torch.float64)
    weight = module.base_layer.weight + adapter.scaling * (adapter.A @ adapter.B).T
    weight = adapter.magnitude[:, None] * weight / weight.norm(dim=1, keepdim=True)
    expected = nn.functional.linear(x, weight, module.base_layer.bias)
    torch.testing.assert_close(module(x), expected)
    torch.testing.assert_close(module.effective_weight(), weight.detach())


def test_dora_norm_is_a_constant_for_the_gradient():
    module = layer(use_dora=True)
    adapter, x = module.low_rank(), torch.randn(5, 6, dtype=torch.float64)
    module(x).sum().backward()
    weight = module.base_layer.weight + adapter.delta_weight()
    scale = adapter.magnitude.detach() / weight.norm(dim=1).detach()
    a, b = (p.detach().clone().requires_grad_() for p in (adapter.A, adapter.B))
    (scale * (x @ a @ b) * adapter.scaling).sum().backward()
    torch.testing.assert_close(adapter.A.grad, a.grad)
    torch.testing.assert_close(adapter.B.grad, b.grad)


@pytest.mark.parametrize("dora", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fresh_adapter_changes_no_bit(dora, dtype):
    model = tiny_gpt().to(dtype).eval()
    ids = torch.randint(29, (2, 9))
    before = model(ids).logits
    apply_lora(model, LoRAConfig(r=2, target=ALL_LINEAR, use_dora=dora))
    assert torch.equal(model(ids).logits, before)


def test_dora_on_an_all_zero_row_stays_finite():
    model = nn.Sequential(nn.Linear(4, 3, bias=False))
    nn.init.zeros_(model[0].weight)
    apply_lora(model, LoRAConfig(r=2, target=("0",), use_dora=True))
    output = model(torch.randn(2, 4))
    output.sum().backward()
    assert torch.equal(output, torch.zeros(2, 3))
    assert all(torch.isfinite(p.grad).all() for p in lora_parameters(model))


def test_a_starts_uniform_within_the_bound_of_linear_and_b_at_zero():
    model = nn.Sequential(nn.Linear(100, 50))
    apply_lora(model, LoRAConfig(r=64, target=("0",)))
    adapter = model[0].low_rank()
    assert adapter.B.count_nonzero() == 0
    assert 0.099 < adapter.A.abs().max() <= 0.1  # 1 / √100, whatever the rank
    assert abs(adapter.A.std() - 0.1 / math.sqrt(3)) < 0.002


def test_adapter_of_a_half_precision_base_is_float32():
    model = nn.Sequential(nn.Linear(8, 8, dtype=torch.bfloat16))
    apply_lora(model, LoRAConfig(r=2, target=("0",), use_dora=True))
    assert {p.dtype for p in lora_parameters(model)} == {torch.float32}
    assert model(torch.randn(2, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_dropout_falls_on_the_low_rank_branch_only_and_only_in_training():
    module = layer(dropout=0.5, alpha=30.0)
    x = torch.randn(4, 6, dtype=torch.float64)
    assert torch.equal(module.eval()(x), module(x))
    module.train()
    assert not torch.equal(module(x), module(x))
    with torch.no_grad():
        module.low_rank().B.zero_()
    assert torch.equal(module(x), module.base_layer(x))


def test_only_the_adapter_is_trainable_and_the_table_of_the_specification_holds():
    model = nn.Sequential(nn.Linear(768, 768, bias=False))
    assert count_trainable(model) == (589_824, 589_824)
    apply_lora(model, LoRAConfig(r=8, target=("0",)))
    assert count_trainable(model) == (12_288, 589_824 + 12_288)
    assert sum(p.numel() for p in lora_parameters(model)) == 12_288


@pytest.mark.parametrize("dora", [True, False])
def test_one_step_moves_the_adapter_and_never_the_base(dora):
    model = tiny_gpt()
    base = {name: value.clone() for name, value in model.state_dict().items()}
    apply_lora(model, LoRAConfig(r=2, target=ALL_LINEAR, use_dora=dora))
    before = [parameter.clone() for parameter in lora_parameters(model)]
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):  # A has a gradient once B has left zero
        model(torch.randint(29, (2, 9)), torch.randint(29, (2, 9))).loss.backward()
        optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, lora_parameters(model), strict=True))
    after = {name.replace(".base_layer.", "."): v for name, v in model.state_dict().items()}
    assert all(torch.equal(after[name], value) for name, value in base.items())


def test_attention_and_feed_forward_of_a_grouped_query_model():
    model = apply_lora(tiny_gpt(gated_ffn=True), LoRAConfig(target=(*ALL_LINEAR, "gate_proj")))
    names = list(adapted_layers(model))
    assert len(names) == 2 * 7
    assert model.blocks[0].attention.k_proj.low_rank().B.shape == (8, 8)  # one key head of 8
    assert model.blocks[1].feed_forward.down_proj.low_rank().A.shape == (40, 8)


def test_a_weight_tied_to_the_embedding_is_refused_and_an_untied_one_is_not():
    model = tiny_gpt()
    with pytest.raises(ValueError, match=r"lm_head.weight shares its tensor with token_embedding"):
        apply_lora(model, LoRAConfig(target=("q_proj", "lm_head")))
    assert not adapted_layers(model)
    assert count_trainable(model)[0] == model.num_parameters()  # nothing was frozen either
    assert len(
        adapted_layers(apply_lora(tiny_gpt(tie_embeddings=False), LoRAConfig(target="lm_head")))
    )


def test_one_module_under_two_names_is_refused():
    shared = nn.Linear(4, 4)
    with pytest.raises(ValueError, match="shares its tensor"):
        apply_lora(nn.Sequential(shared, nn.ReLU(), shared), LoRAConfig(target=("0",)))


def test_a_pattern_for_no_layer_is_refused():
    with pytest.raises(ValueError, match="pattern 'up_porj' matches none of: blocks.0"):
        apply_lora(tiny_gpt(), LoRAConfig(rank_pattern={"up_porj": 4}))


def test_rank_pattern_reaches_the_layer():
    model = apply_lora(
        tiny_gpt(), LoRAConfig(r=2, alpha=8, rank_pattern={r"1\.attention\.q_proj": 5})
    )
    adapters = [model.blocks[i].attention.q_proj.low_rank() for i in range(2)]
    assert [a.A.shape[1] for a in adapters] == [2, 5]
    assert [a.scaling for a in adapters] == [4.0, 8 / 5]


def test_second_adapter_may_change_other_layers():
    model = tiny_gpt().eval()
    ids = torch.randint(29, (1, 7))
    original = model(ids).logits
    outputs = {}
    for name, target in {"a": "q_proj", "b": "up_proj"}.items():
        apply_lora(model, LoRAConfig(r=2, target=target), name)
        with torch.no_grad():
            for parameter in lora_parameters(model):
                parameter.add_(torch.randn_like(parameter))
        outputs[name] = model(ids).logits
    assert adapter_names(model) == ["a", "b"]
    assert not torch.allclose(outputs["a"], outputs["b"])
    set_adapter(model, "a")
    assert torch.equal(model(ids).logits, outputs["a"])
    assert not torch.allclose(original, outputs["a"])
    assert {n.split(".")[1] for n, p in model.named_parameters() if p.requires_grad} == {"0", "1"}
    assert all("adapters.a." in n for n, p in model.named_parameters() if p.requires_grad)
    # the layers that only b changes are copied as they are
    plain = merge_lora(model)
    assert torch.equal(plain.blocks[0].feed_forward.up_proj.weight,
                       model.blocks[0].feed_forward.up_proj.base_layer.weight)  # fmt: skip
    torch.testing.assert_close(plain(ids).logits, outputs["a"])


@pytest.mark.parametrize("name", ["", "a.b", "a b", "keys", "pop", "1a"])
def test_impossible_adapter_names_are_refused(name):
    with pytest.raises(ValueError, match="adapter name must be"):
        apply_lora(tiny_gpt(), LoRAConfig(), name)


def test_a_name_twice_is_refused():
    model = apply_lora(tiny_gpt(), LoRAConfig())
    with pytest.raises(ValueError, match="'default' exists already"):
        apply_lora(model, LoRAConfig(target="up_proj"))


@pytest.mark.parametrize("variant", [{}, {"use_rslora": True}, {"use_dora": True}])
def test_merged_equals_unmerged_and_unmerging_restores_every_bit(variant):
    model = tiny_gpt().eval()
    apply_lora(model, LoRAConfig(r=2, target=ALL_LINEAR, **variant))
    with torch.no_grad():
        for parameter in lora_parameters(model):
            parameter.add_(torch.randn_like(parameter) * 0.05)
    ids = torch.randint(29, (2, 9))
    with torch.no_grad():
        tuned, weights = model(ids).logits, {k: v.clone() for k, v in model.state_dict().items()}
        plain = merge_lora(model)
        merge_in_place(model)
        torch.testing.assert_close(plain(ids).logits, tuned, atol=1e-5, rtol=1e-5)
        assert torch.equal(model(ids).logits, plain(ids).logits)
        assert model.state_dict().keys() == weights.keys()
        unmerge_lora(model)
        assert torch.equal(model(ids).logits, tuned)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in weights.items())


def test_merged_model_is_plain_tied_trainable_and_saves(tmp_path):
    model = apply_lora(tiny_gpt(), LoRAConfig(r=2))
    with torch.no_grad():
        for parameter in lora_parameters(model):
            parameter.add_(0.1)
    plain = merge_lora(model)
    assert not any(isinstance(module, LoRALinear) for module in plain.modules())
    assert plain.lm_head.weight is plain.token_embedding.weight
    assert plain.token_embedding.weight is not model.token_embedding.weight
    assert all(parameter.requires_grad for parameter in plain.parameters())
    assert list(plain.state_dict()) == list(tiny_gpt().state_dict())
    plain.save(tmp_path / "model")
    ids = torch.randint(29, (1, 5))
    assert torch.equal(GPT.load(tmp_path / "model")(ids).logits, plain.eval()(ids).logits)


def test_merging_without_a_copy_replaces_the_layers_themselves():
    model = apply_lora(tiny_gpt(), LoRAConfig(r=2))
    assert merge_lora(model, copy=False) is model
    assert not adapted_layers(model)
    assert type(model.blocks[0].attention.q_proj) is nn.Linear


def test_the_mode_of_training_is_kept():
    model = apply_lora(tiny_gpt().eval(), LoRAConfig(dropout=0.5))
    assert not any(module.training for module in model.modules())
    assert not any(module.training for module in merge_lora(model).modules())
