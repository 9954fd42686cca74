"""LoRA beside a frozen base of four bits: the same function, gradients and files."""

import copy

import pytest
import torch

from finetuning.adapter_files import load_adapter, recorded_quantization, save_adapter
from finetuning.adapters import adapted_layers, adapters_disabled
from finetuning.lora import LoRAConfig, apply_lora, count_trainable, lora_parameters, merge_lora
from gpt_model.config import GPTConfig
from gpt_model.model import GPT
from inference.quantization import dequantize, quantize, quantized_layers
from training.optimizer import build_optimizer

IDS = torch.randint(40, (2, 12), generator=torch.Generator().manual_seed(1))
TARGET = ("q_proj", "v_proj", "up_proj", "down_proj")


def build():
    torch.manual_seed(0)
    return GPT(GPTConfig(vocab_size=40, max_seq_len=16, dim=32, n_layers=2, n_heads=2))


def adapted(model, **options):
    torch.manual_seed(5)
    apply_lora(model, LoRAConfig(r=3, target=TARGET, **options))
    with torch.no_grad():
        for parameter in lora_parameters(model):
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("options", [{}, {"use_dora": True}], ids=["lora", "dora"])
def test_loss_and_gradients_are_those_beside_the_dequantized_weights(options):
    ours = adapted(quantize(build()), **options)
    plain = adapted(dequantize(quantize(build())), **options)
    results = []
    for model in (ours, plain):
        loss = model(IDS[:, :-1], IDS[:, 1:]).loss
        results.append([loss, *torch.autograd.grad(loss, lora_parameters(model))])
    torch.testing.assert_close(*results, atol=1e-6, rtol=1e-5)
    # not those beside the weights as they were before
    before = adapted(build(), **options)(IDS[:, :-1], IDS[:, 1:]).loss
    assert abs(before - results[0][0]) > 1e-4


@pytest.mark.parametrize("copied", [True, False])
def test_merging_gives_a_plain_model_with_the_same_outputs(copied):
    model = adapted(quantize(build()))
    expected = model(IDS).logits
    plain = merge_lora(model, copy=copied)
    assert quantized_layers(plain) == adapted_layers(plain) == {}
    assert plain.state_dict().keys() == build().state_dict().keys()
    torch.testing.assert_close(plain(IDS).logits, expected, atol=1e-5, rtol=1e-5)
    if copied:
        assert torch.equal(model(IDS).logits, expected)


def test_the_base_has_neither_parameters_nor_gradients_nor_optimizer_state():
    model = adapted(quantize(build()))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with adapters_disabled(model):
        plain = model(IDS).logits
    optimizer = build_optimizer(model, learning_rate=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(IDS[:, :-1], IDS[:, 1:]).loss.backward()
        optimizer.step()
    trained = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    assert trained == count_trainable(model)[0] == 3 * 2 * (2 * 64 + 2 * (32 + 128))
    for name, value in model.state_dict().items():
        assert ("adapters" in name) != torch.equal(value, before[name]), name
    with adapters_disabled(model):
        assert torch.equal(model(IDS).logits, plain)


def test_files_remember_how_the_base_was_quantized(tmp_path):
    model = adapted(quantize(build(), group_size=16))
    save_adapter(model, tmp_path / "a")
    assert recorded_quantization(tmp_path / "a") == 16
    again = load_adapter(quantize(build(), group_size=16), tmp_path / "a")
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    plain = build()
    with pytest.raises(
        ValueError, match=r"a base of 4 bits, groups of 16, .*quantize\(model, group_s"
    ):
        load_adapter(plain, tmp_path / "a")
    assert adapted_layers(plain) == {}
    with pytest.raises(ValueError, match="this model is a base of 4 bits, groups of 64"):
        load_adapter(quantize(build()), tmp_path / "a")
    load_adapter(plain, tmp_path / "a", allow_other_base=True)
    # the other way round, and another base quantized alike
    save_adapter(adapted(build()), tmp_path / "b")
    assert recorded_quantization(tmp_path / "b") is None
    with pytest.raises(ValueError, match="trained on a plain base, .*without quantizing it"):
        load_adapter(quantize(build()), tmp_path / "b")
    other = build()
    with torch.no_grad():
        other.blocks[0].feed_forward.up_proj.weight.mul_(1.5)
    with pytest.raises(ValueError, match="was trained on another base"):
        load_adapter(quantize(other, group_size=16), tmp_path / "a")


@pytest.mark.parametrize(
    "options",
    [
        {"bits": 8},
        {"bits": 4, "embeddings": 8},
        {"bits": 4, "group_size": 16, "zero_points": True},
        {"bits": 4, "group_size": None},
        {"bits": 4, "method": "gptq", "calibration": IDS},
    ],
)
def test_an_adapter_knows_a_base_that_was_quantized_beforehand(tmp_path, options):
    quantize(build(), **options).save(tmp_path / "base")
    model = adapted(GPT.load(tmp_path / "base"))
    assert count_trainable(model)[1] == count_trainable(adapted(build()))[1]
    save_adapter(model, tmp_path / "a")
    assert recorded_quantization(tmp_path / "a") is None  # cannot be made from the plain base
    again = load_adapter(GPT.load(tmp_path / "base"), tmp_path / "a")
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    for other in (build(), quantize(build()), quantize(build(), bits=8, group_size=8)):
        with pytest.raises(ValueError, match="load the quantized model that it was trained on"):
            load_adapter(other, tmp_path / "a")
        assert adapted_layers(other) == {}
    # the same description, another base
    torch.manual_seed(9)
    third = quantize(GPT(build().config), **options)
    with pytest.raises(ValueError, match="was trained on another base"):
        load_adapter(third, tmp_path / "a")


def test_four_bits_made_on_the_fly_and_read_from_a_directory_are_one_base(tmp_path):
    quantize(build(), group_size=16).save(tmp_path / "base")
    model = adapted(GPT.load(tmp_path / "base"))
    save_adapter(model, tmp_path / "a")
    assert recorded_quantization(tmp_path / "a") == 16
    again = load_adapter(quantize(build(), group_size=16), tmp_path / "a")
    assert torch.equal(again(IDS).logits, model(IDS).logits)


def test_merging_beside_a_half_precision_base_keeps_its_type():
    for options in ({}, {"bits": 8, "embeddings": 8}):
        model = adapted(quantize(build().to(torch.bfloat16), **options))
        logits = model(IDS).logits
        plain = merge_lora(model)
        assert {p.dtype for p in plain.parameters()} == {torch.bfloat16}
        assert plain(IDS).logits.dtype == torch.bfloat16
        assert (plain(IDS).logits - logits).float().norm() < 0.03 * logits.float().norm()


def test_an_adapter_on_a_shared_table_is_refused():
    model = quantize(build(), embeddings=8)
    with pytest.raises(ValueError, match=r"lm_head.weight shares its tensor with token_embedding"):
        apply_lora(model, LoRAConfig(target=("lm_head",)))


def test_a_copy_of_a_quantized_model_shares_nothing():
    model = adapted(quantize(build()))
    other = copy.deepcopy(model)
    for layer in quantized_layers(other).values():
        layer.packed.zero_()
    assert not torch.equal(other(IDS).logits, model(IDS).logits)
