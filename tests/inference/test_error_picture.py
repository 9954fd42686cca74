"""Errors by layer, as numbers and as a picture."""

import copy

import pytest
import torch

from gpt_model.config import GPTConfig
from gpt_model.model import GPT
from inference.error_picture import draw_errors, errors_by_layer, residual_errors
from inference.quantization import quantize

CONFIG = GPTConfig(vocab_size=40, max_seq_len=16, dim=32, n_layers=3, n_heads=2, gated_ffn=True)
IDS = torch.randint(40, (6, 16), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return GPT(CONFIG).eval()


def test_every_layer_of_the_blocks_has_its_error(model):
    errors = errors_by_layer(quantize(model, calibration=IDS))
    assert len(errors) == 3 * 7
    assert all(0.02 < error < 0.2 for error in errors.values())


def test_errors_of_a_model_that_saw_no_text_are_unknown(model):
    with pytest.raises(ValueError, match="quantize the model with calibration tokens"):
        errors_by_layer(quantize(model))


@pytest.mark.parametrize("batch_size", [1, 4, 6])
def test_the_residual_stream_is_compared_block_by_block(model, batch_size):
    other = quantize(copy.deepcopy(model), bits=8, skip=("lm_head", "q_proj"))
    found = residual_errors(model, other, IDS, batch_size)
    assert len(found) == 3
    assert 0 < found[0] < found[2] < 0.05
    assert residual_errors(model, copy.deepcopy(model), IDS) == [0.0, 0.0, 0.0]
    # by hand, for the last block: what the final norm is given
    seen = []
    for one in (model, other):
        handle = one.final_norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        with torch.no_grad():
            one(IDS)
        handle.remove()
    assert found[2] == pytest.approx(float((seen[0] - seen[1]).norm() / seen[0].norm()), rel=1e-4)
    assert not any(block._forward_hooks for block in [*model.blocks, *other.blocks])


def test_the_picture_shows_a_panel_for_each_method(tmp_path, model):
    errors = errors_by_layer(quantize(copy.deepcopy(model), calibration=IDS))
    draw_errors({"rtn": errors}, tmp_path / "one.png")
    draw_errors({"rtn": errors, "gptq": errors}, tmp_path / "two.png", {"rtn": [0.1, 0.2, 0.3]})
    one, two = ((tmp_path / f"{n}.png").read_bytes() for n in ("one", "two"))
    assert one.startswith(b"\x89PNG")
    width = [int.from_bytes(data[16:20], "big") for data in (one, two)]
    assert width[1] > 2 * width[0]
    with pytest.raises(ValueError, match="the ending must be one of"):
        draw_errors({"rtn": errors}, tmp_path / "one.xyz")
