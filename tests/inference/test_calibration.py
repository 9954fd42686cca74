"""What calibration sees: the inputs of every layer, all of them, in the order of the model."""

import pytest
import torch
from torch import nn

from gpt_model.config import GPTConfig
from gpt_model.model import GPT
from inference.calibration import (
    InputStatistics,
    advance,
    calibration_windows,
    collect,
    first_block_inputs,
    output_errors,
    relative_error,
    stages_of,
)

CONFIG = GPTConfig(vocab_size=40, max_seq_len=16, dim=32, n_layers=3, n_heads=2)
MODELS = {
    "gpt2": CONFIG,
    "llama": CONFIG.replace(
        position="rope", norm="rmsnorm", gated_ffn=True, activation="silu", n_kv_heads=1
    ),
    "post": CONFIG.replace(norm_position="post", position="sinusoidal"),
    "window": CONFIG.replace(position="rope", sliding_window=3, token_shift=True, qk_norm=True),
}
IDS = torch.randint(40, (5, 11), generator=torch.Generator().manual_seed(0))


def build(name="gpt2"):
    torch.manual_seed(1)
    return GPT(MODELS[name]).eval()


def true_inputs(model, ids):
    """Layer name → everything that it is given in one pass of the whole model."""
    seen = {}

    def keep(name):
        return lambda _, args: seen.update({name: args[0].detach().flatten(0, -2)})

    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    handles = [m.register_forward_pre_hook(keep(n)) for n, m in layers.items()]
    with torch.no_grad():
        logits = model(ids).logits
    for handle in handles:
        handle.remove()
    return seen, logits


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_every_layer_is_measured_on_what_the_model_gives_it(name, batch_size):
    model = build(name)
    wanted, logits = true_inputs(model, IDS)
    inputs = first_block_inputs(model, IDS, batch_size)
    assert [len(x) for x, _ in inputs] == [len(part) for part in IDS.split(batch_size)]
    measured = set()
    for number, block in enumerate(model.blocks):
        for names in stages_of(block, inputs[0]):
            found = collect(block, names, inputs)
            for each in names:
                x = wanted[f"blocks.{number}.{each}"].double()
                measured.add(f"blocks.{number}.{each}")
                assert found.n_tokens == len(x) == 55
                torch.testing.assert_close(found.hessian, x.t() @ x / 55, atol=1e-6, rtol=1e-5)
                torch.testing.assert_close(found.mean_abs, x.abs().mean(0), atol=1e-7, rtol=1e-5)
        inputs = advance(block, inputs)
    assert measured == {name for name in wanted if name != "lm_head"}
    end = model.lm_head(model.final_norm(torch.cat([x for x, _ in inputs])))
    torch.testing.assert_close(end, logits)
    assert all(not block._forward_pre_hooks for block in model.modules())


def test_stages_are_the_layers_with_one_input():
    inputs = first_block_inputs(build("llama"), IDS)
    q, k, v = (f"attention.{x}_proj" for x in "qkv")
    wide = ["feed_forward.up_proj", "feed_forward.gate_proj"]
    assert stages_of(build("llama").blocks[0], inputs[0]) == [
        [q, k, v],
        ["attention.out_proj"],
        wide,
        ["feed_forward.down_proj"],
    ]


def test_the_error_of_the_outputs_needs_only_the_hessian():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 7, generator=generator) @ torch.randn(7, 7, generator=generator)
    weight, other = torch.randn(2, 4, 7, generator=generator)
    statistics = InputStatistics.empty(7)
    for part in x.split([1, 100, 199]):
        statistics.add(part.view(1, -1, 7))
    found = output_errors(weight, other, statistics)
    wanted = (x.double() @ (weight - other).double().t()).square().mean(dim=0)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    whole = (x.double() @ weight.double().t()).square().mean(dim=0).sum()
    assert relative_error(weight, other, statistics) == pytest.approx(
        float((wanted.sum() / whole).sqrt()), rel=1e-5
    )
    assert relative_error(weight, other, InputStatistics.empty(7)) == 0.0
    # dividing the inputs and multiplying the columns changes nothing
    scale = torch.rand(7, generator=generator) + 0.5
    inner = statistics.divided(scale)
    again = output_errors(weight * scale, other * scale, inner)
    torch.testing.assert_close(again, found, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(inner.mean_abs, (x / scale).abs().double().mean(0))


@pytest.mark.parametrize(("n", "length", "rows"), [(3, 10, 3), (50, 10, 10), (1, 100, 1)])
def test_windows_are_spread_over_the_text_and_do_not_overlap(n, length, rows):
    windows = calibration_windows(list(range(100)), n, length)
    assert windows.shape == (rows, length)
    assert (windows.diff(dim=1) == 1).all()
    assert windows[0, 0] == 0
    assert rows == 1 or windows[-1, -1] == 99
    assert (windows[1:, 0] > windows[:-1, -1]).all()


def test_a_text_that_is_too_short_is_refused():
    with pytest.raises(ValueError, match="one window of 20 tokens, the text has 19"):
        calibration_windows(torch.arange(19), 4, 20)
    with pytest.raises(ValueError, match="n_windows must be an integer >= 1, got 0"):
        calibration_windows(torch.arange(19), 0, 2)
