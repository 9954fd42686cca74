"""The fused LoRA step: the written-out one's outputs and gradients, less memory."""

import copy

import pytest
import torch
from torch import nn

from finetuning.adapters import adapters_disabled, merge_in_place, unmerge_lora
from finetuning.fused_lora import halve_frozen, lora_products
from finetuning.lora import LoRAConfig, apply_lora, lora_parameters
from gpt_model.config import GPTConfig
from gpt_model.model import GPT
from inference.quantization import quantize
from transformer_basics.speed_ups import without

ALL = ("q_proj", "k_proj", "v_proj", "out_proj", "up_proj", "down_proj")
IDS = torch.randint(40, (3, 17), generator=torch.Generator().manual_seed(1))
MODERN = dict(n_kv_heads=1, position="rope", norm="rmsnorm", qkv_bias=False, proj_bias=False)


def build(target=ALL, base=lambda model: model, *, config=None, **options):
    torch.manual_seed(0)
    shape = dict(vocab_size=40, max_seq_len=32, dim=32, n_layers=2, n_heads=2)
    model = base(GPT(GPTConfig(**shape, **(config or {}))))
    apply_lora(model, LoRAConfig(r=3, alpha=5, target=target, **options))
    with torch.no_grad():
        for parameter in lora_parameters(model):
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def step(model, *off, dtype=torch.bfloat16):
    with without(*off), torch.autocast("cpu", dtype, enabled=dtype is not None):
        loss = model(IDS[:, :-1], IDS[:, 1:], reduction="sum", need_logits=False).loss
    gradients = torch.autograd.grad(loss, lora_parameters(model))
    return torch.cat([loss.detach().view(1), *(g.flatten() for g in gradients)])


def calls(monkeypatch):
    """How many layers went the fused way, call by call."""
    found = []

    def counted(x, parts):
        found.append(len(parts))
        return lora_products(x, parts)

    monkeypatch.setattr("finetuning.lora.lora_products", counted)
    return found


@pytest.mark.parametrize("config", [{}, MODERN], ids=["classic", "modern"])
@pytest.mark.parametrize("off", [(), ("joined",), ("pieces",)], ids=["all", "apart", "whole"])
def test_gradients_are_as_near_to_float32_as_autocast_ones(config, off, monkeypatch):
    model = build(config=config, rank_pattern={"k_proj": 5}, alpha_pattern={"v_proj": 11.0})
    exact = step(model, dtype=None)
    autocast = step(model, "written")
    found = calls(monkeypatch)
    fused = step(model, *off)
    assert found == ([1] * 6 if "joined" in off else [3, 1, 1, 1]) * 2
    error = (fused[1:] - exact[1:]).norm() / exact[1:].norm()
    assert error < 1.2 * (autocast[1:] - exact[1:]).norm() / exact[1:].norm() + 1e-3
    assert abs(fused[0] - exact[0]) < 1e-3 * exact[0]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("needs_x", [True, False])
def test_each_gradient_of_several_layers_at_once(bias, needs_x):
    torch.manual_seed(0)
    layers = [nn.Linear(24, n, bias=bias).requires_grad_(False) for n in (24, 8, 40)]
    ranks, scales = (2, 1, 5), (0.5, 2.0, 3.0)
    downs = [torch.randn(24, r, requires_grad=True) for r in ranks]
    ups = [
        torch.randn(r, len(y.weight), requires_grad=True)
        for r, y in zip(ranks, layers, strict=True)
    ]
    x = torch.randn(2, 7, 24, requires_grad=needs_x)
    slopes = [torch.randn(2, 7, len(y.weight)) for y in layers]
    parts = list(zip(layers, downs, ups, scales, strict=True))
    wanted = [y(x) + s * (x @ a) @ b for y, a, b, s in parts]
    found = lora_products(x, parts)
    inputs = [*downs, *ups, *([x] if needs_x else [])]
    exact = torch.autograd.grad(wanted, inputs, slopes)
    gradients = torch.autograd.grad(found, inputs, [s.bfloat16() for s in slopes])
    for left, right in zip([*found, *gradients], [*wanted, *exact], strict=True):
        assert (left - right).norm() < 0.01 * right.norm()
    assert all(g.dtype == torch.float32 for g in gradients)


def test_what_it_does_not_cover_goes_the_written_way(monkeypatch):
    found = calls(monkeypatch)
    step(build(use_dora=True))
    step(build(dropout=0.1).train())
    step(build(base=quantize))
    step(build(), dtype=None)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        build()(IDS)
    model = build()
    with adapters_disabled(model), torch.autocast("cpu", torch.bfloat16):
        model(IDS)
    merge_in_place(model)
    with torch.autocast("cpu", torch.bfloat16):
        model(IDS)
    unmerge_lora(model)
    assert found == []
    step(build(dropout=0.1).eval())
    assert found == [3, 1, 1, 1] * 2


def test_layers_without_an_adapter_beside_layers_with_one(monkeypatch):
    model = build(target=("q_proj", "v_proj", "up_proj"))
    exact, found = step(model, dtype=None), calls(monkeypatch)
    halve_frozen(model)
    fused = step(model)
    assert found == [1, 1, 1] * 2  # k has none: q and v go alone
    assert (fused - exact).norm() < 0.03 * exact.norm()


def test_a_trained_bias_or_weight_gets_its_gradient():
    model = build()
    layer = model.blocks[1].feed_forward.up_proj.base_layer
    layer.bias.requires_grad_(True)
    with torch.autocast("cpu", torch.bfloat16):
        model(IDS[:, :-1], IDS[:, 1:], need_logits=False).loss.backward()
    assert layer.bias.grad.abs().max() > 0


def test_the_frozen_base_is_kept_once_in_half():
    model = build()
    before = {name: p.clone() for name, p in model.named_parameters()}
    assert halve_frozen(model) is model
    for name, parameter in model.named_parameters():
        matrix = parameter.ndim == 2 and "adapters" not in name and "position" not in name
        wanted = torch.bfloat16 if matrix else torch.float32
        if "position" not in name:
            assert parameter.dtype == wanted, name
        assert torch.equal(parameter, before[name].to(parameter.dtype))
    assert model.lm_head.weight is model.token_embedding.weight
    whole = halve_frozen(GPT(model.config))  # nothing is frozen: nothing changes
    assert all(p.dtype == torch.float32 for p in whole.parameters())


def test_the_residual_stream_stays_in_float32():
    # no table of positions in float32, which would widen it anyway
    model, seen = halve_frozen(build(config=MODERN)), []
    model.blocks[1].register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype))
    step(model)
    assert seen == [torch.float32]


def test_rounding_the_base_changes_only_the_embedding():
    """The products of the blocks round their weights anyway: bit for bit the same."""
    model = build(config={"tie_embeddings": False})
    model.token_embedding.weight.data = model.token_embedding.weight.data.bfloat16().float()
    position = dict(model.named_parameters())["position_embedding.weight"]
    position.data = position.data.bfloat16().float()
    before = step(copy.deepcopy(model))
    assert torch.equal(step(halve_frozen(model)), before)


def test_less_is_kept_for_the_backward_pass():
    model, sizes = build(), []
    for off in (("written",), ()):
        kept = {}

        def note(tensor, kept=kept):
            if not isinstance(tensor, nn.Parameter):
                kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            step(model, *off)
        sizes.append(sum(kept.values()))
    assert sizes[1] < 0.8 * sizes[0]
