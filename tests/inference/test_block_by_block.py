"""Whole models, quantized while looking at their inputs."""

import copy

import pytest
import torch

from gpt_model.config import GPTConfig
from gpt_model.model import GPT
from inference.block_by_block import METHODS, quantize_blocks
from inference.quantization import dequantize, quantize, quantized_layers
from transformer_basics.integer_weights import WeightFormat, encode
from transformer_basics.linear import Linear

CONFIG = GPTConfig(vocab_size=40, max_seq_len=32, dim=64, n_layers=2, n_heads=4, ffn_dim=96)
LLAMA = CONFIG.replace(
    position="rope", norm="rmsnorm", gated_ffn=True, activation="silu", n_kv_heads=2
)
IDS = torch.randint(40, (24, 32), generator=torch.Generator().manual_seed(0))


def build(config=CONFIG):
    """Random, but with inputs that differ in size and go together, as trained ones do."""
    torch.manual_seed(1)
    model = GPT(config).eval()
    with torch.no_grad():
        for block in model.blocks:
            for norm in (block.attention_norm, block.ffn_norm):
                norm.weight.copy_(torch.exp(torch.randn(64)))
            for layer in (block.attention.v_proj, block.feed_forward.up_proj):
                layer.weight.copy_(torch.randn(len(layer.weight), 6) @ torch.randn(6, 64) / 10)
    return model


def errors(model):
    return {name: layer.output_error for name, layer in quantized_layers(model).items()}


@pytest.mark.parametrize("config", [CONFIG, LLAMA, CONFIG.replace(norm_position="post")])
@pytest.mark.parametrize("method", METHODS)
def test_no_layer_is_worse_than_rounded_and_the_whole_is_better(config, method):
    model = build(config)
    before = model(IDS).logits
    options = {"bits": 4, "group_size": 32, "calibration": IDS}
    plain = quantize(copy.deepcopy(model), **options)
    ours = quantize(copy.deepcopy(model), method=method, **options)
    n_layers = 2 * (7 if config.gated_ffn else 6)
    assert len(errors(ours)) == n_layers
    assert {layer.method for layer in quantized_layers(ours).values()} == {method}
    gaps = [((m(IDS).logits - before).norm() / before.norm()).item() for m in (ours, plain)]
    if method == "rtn":
        assert gaps[0] == gaps[1]
        without = quantize(copy.deepcopy(model), bits=4, group_size=32)
        assert torch.equal(without(IDS).logits, plain(IDS).logits)  # it only measures
        assert set(errors(without).values()) == {None}
        return
    assert gaps[0] < 0.95 * gaps[1]
    # inputs differ a little after the first stage, so no more is promised of the single layers
    for name, error in errors(ours).items():
        assert error < 1.05 * errors(plain)[name], name
    for x in "qkv":  # the first stage sees the same inputs
        name = f"blocks.0.attention.{x}_proj"
        assert errors(ours)[name] <= errors(plain)[name] + 1e-9


def test_the_error_that_is_kept_is_that_of_the_outputs():
    model = build()
    seen = {}
    layer = model.blocks[0].attention.q_proj
    handle = layer.register_forward_pre_hook(lambda _, args: seen.update(x=args[0]))
    model(IDS)
    handle.remove()
    quantized = quantize(copy.deepcopy(model), method="gptq", calibration=IDS)
    other = quantized.blocks[0].attention.q_proj
    x = seen["x"]
    wrong, whole = x @ (layer.weight - other.weight).t(), x @ layer.weight.t()
    assert other.output_error == pytest.approx(float(wrong.norm() / whole.norm()), rel=1e-3)


def test_later_layers_see_the_errors_of_earlier_ones():
    """The second stage must be chosen on inputs that the rounded first stage gives."""
    model = build()
    form = WeightFormat(4, 32)
    done = copy.deepcopy(model)
    quantize_blocks(done, form, IDS, "gptq")
    # repeat the last stage of the last block by hand, from the finished model's own inputs
    from inference.calibration import InputStatistics
    from inference.gptq import gptq

    statistics = InputStatistics.empty(96)
    last = done.blocks[1].feed_forward.down_proj
    handle = last.register_forward_pre_hook(lambda _, args: statistics.add(args[0]))
    done(IDS)
    handle.remove()
    again = gptq(model.blocks[1].feed_forward.down_proj.weight, statistics, form)
    same = (again.packed == last.packed).float().mean()
    assert same > 0.99
    fresh = InputStatistics.empty(96)
    handle = model.blocks[1].feed_forward.down_proj.register_forward_pre_hook(
        lambda _, args: fresh.add(args[0])
    )
    model(IDS)
    handle.remove()
    other = gptq(model.blocks[1].feed_forward.down_proj.weight, fresh, form)
    assert (other.packed == last.packed).float().mean() < same


def test_act_order_and_skip():
    model = build()
    options = {"method": "gptq", "calibration": IDS}
    ordered = quantize(copy.deepcopy(model), act_order=True, **options)
    usual = quantize(copy.deepcopy(model), **options)
    name = "blocks.0.feed_forward.up_proj"
    first, second = (quantized_layers(m)[name] for m in (ordered, usual))
    assert not torch.equal(first.packed, second.packed)
    for method in METHODS:
        partly = quantize(
            copy.deepcopy(model),
            method=method,
            calibration=IDS,
            skip=("lm_head", "out_proj", "q_proj"),
        )
        assert type(partly.blocks[0].attention.out_proj) is Linear
        assert len(quantized_layers(partly)) == 2 * 4
        assert torch.equal(
            partly.blocks[0].attention.out_proj.weight, model.blocks[0].attention.out_proj.weight
        )
        before = model(IDS).logits
        assert (partly(IDS).logits - before).norm() < 0.3 * before.norm()


def test_tables_and_head_come_along(tmp_path):
    for tied in (True, False):
        model = quantize(
            build(CONFIG.replace(tie_embeddings=tied)), method="awq", calibration=IDS, embeddings=8
        )
        model.save(tmp_path / str(tied))
        again = GPT.load(tmp_path / str(tied))
        assert torch.equal(again(IDS).logits, model(IDS).logits)
        assert again.blocks[0].attention.q_proj.method == "awq"
        assert (again.lm_head.bits, again.lm_head.method) == (8, "rtn")
    head = quantize(
        build(CONFIG.replace(tie_embeddings=False)), method="gptq", calibration=IDS, skip=()
    ).lm_head
    assert (head.bits, head.method) == (4, "rtn")
    assert torch.equal(head.packed, encode(build(
        CONFIG.replace(tie_embeddings=False)).lm_head.weight, WeightFormat()).packed)  # fmt: skip


def test_folded_models_are_plain_again_and_compute_the_same():
    model = quantize(build(LLAMA), method="awq", calibration=IDS)
    logits = model(IDS).logits
    torch.testing.assert_close(dequantize(model)(IDS).logits, logits, atol=1e-5, rtol=1e-5)
    assert all(p.requires_grad for p in model.parameters())


def test_half_precision_models_can_be_calibrated():
    for method in METHODS:
        model = quantize(build(LLAMA).to(torch.bfloat16), method=method, calibration=IDS)
        assert model(IDS).logits.dtype == torch.bfloat16


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("place", ["weight", "input", "stopped"])
def test_a_failure_half_way_leaves_the_model_as_it_was(method, place):
    model = build(LLAMA)
    with torch.no_grad():
        if place == "weight":
            model.blocks[1].feed_forward.down_proj.weight[3, 4] = float("nan")
        elif place == "input":
            model.blocks[1].ffn_norm.weight[0] = float("inf")
    modules = {name: id(module) for name, module in model.named_modules()}
    state = {name: value.clone() for name, value in model.state_dict().items()}

    def watch(text):
        if place == "stopped":
            raise KeyboardInterrupt

    kind = KeyboardInterrupt if place == "stopped" else ValueError
    with pytest.raises(kind, match=None if place == "stopped" else r"blocks\.1\.feed_forward"):
        quantize(model, method=method, calibration=IDS, watch=watch)
    assert {name: id(module) for name, module in model.named_modules()} == modules
    for name, value in model.state_dict().items():
        assert torch.equal(value.nan_to_num(7.0), state[name].nan_to_num(7.0)), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "gtpq"}, "method must be one of rtn, gptq, awq; got 'gtpq'; did you mean 'gp"),
        ({"method": "awq"}, "method awq needs calibration"),
        ({"act_order": True}, "act_order belongs to method gptq, got method rtn"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        quantize(build(), **options)


def test_only_a_gpt_is_calibrated():
    with pytest.raises(ValueError, match="calibration needs a GPT, got Sequential"):
        quantize(torch.nn.Sequential(torch.nn.Linear(4, 4)), method="gptq", calibration=IDS)


def test_progress_is_told_block_by_block():
    told = []
    quantize(build(), method="gptq", calibration=IDS, watch=told.append)
    assert told == ["block 1 of 2", "block 2 of 2"]
