"""Opened at another length: the frequencies of transformers, the weights untouched."""

import pytest
import torch

from gpt_model.config import GPTConfig, preset
from gpt_model.longer_context import LONGER, extend_context, longer_config, trained_length
from gpt_model.model import GPT
from transformer_basics.rope_scaling import SCALINGS, RopeScaling

SMALL = {"vocab_size": 37, "max_seq_len": 16, "dim": 24, "n_layers": 2, "n_heads": 2}
LLAMA = SMALL | {"position": "rope", "norm": "rmsnorm", "activation": "silu", "gated_ffn": True}
LLAMA |= {"qkv_bias": False, "proj_bias": False, "ffn_dim": 32, "tie_embeddings": False}


def build(**changes):
    torch.manual_seed(0)
    return GPT(GPTConfig(**{**LLAMA, "init_std": 0.3, **changes})).eval()


@pytest.mark.parametrize("kind", [kind for kind in SCALINGS if kind != "ntk"])
def test_the_longer_model_is_transformers_with_the_same_scaling(kind, tmp_path):
    """Their model, given the scaling by hand, reads four times the trained length as ours does."""
    transformers = pytest.importorskip("transformers")
    from gpt_model.huggingface_export import config_to_huggingface
    from gpt_model.huggingface_writing import save_huggingface

    ours = build()
    save_huggingface(ours, tmp_path)
    values = config_to_huggingface(ours.config)
    scaling = {"rope_type": kind, "factor": 4.0}
    if kind in ("yarn", "llama3"):
        scaling["original_max_position_embeddings"] = 16
    if kind == "llama3":
        scaling |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    if kind == "dynamic":  # theirs measures from the context, and grows with what it reads
        scaling["factor"] = 1.0
    values["rope_scaling"] = scaling
    values["max_position_embeddings"] = 16 if kind == "dynamic" else 64
    del values["architectures"], values["model_type"], values["torch_dtype"]
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**values)).eval()
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    theirs.load_state_dict(plain.state_dict())
    ids = torch.randint(37, (2, 64))
    extend_context(ours, 64, kind)
    with torch.no_grad():
        expected, found = theirs(ids).logits, ours(ids).logits
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", LONGER)
def test_cached_in_pieces_equals_one_forward_at_the_longer_length(kind):
    model = extend_context(build(), 48, kind)
    ids = torch.randint(37, (1, 48))
    with torch.no_grad():
        cache = model.make_cache(1)
        pieces = [model(piece, cache=cache).logits for piece in ids.split([20, 1, 26, 1], 1)]
        torch.testing.assert_close(torch.cat(pieces, 1), model(ids).logits, atol=2e-5, rtol=1e-4)


def test_nothing_is_lost_on_the_way_and_back_again(tmp_path):
    model, ids = build(), torch.randint(37, (1, 16))
    with torch.no_grad():
        before = model(ids).logits
        for kind in (*LONGER, *reversed(LONGER)):
            extend_context(model, 64, kind)
            assert trained_length(model.config) == 16
            assert model.config.max_seq_len == 64
            # saved and read back, it is the same function
            model.save(tmp_path / "model")
            longer = torch.randint(37, (1, 64))
            torch.testing.assert_close(GPT.load(tmp_path / "model")(longer), model(longer))
        assert torch.equal(extend_context(model, 16, "none")(ids).logits, before)
        assert model.config == build().config


def test_a_model_stretched_before_keeps_its_own_numbers():
    own = RopeScaling("yarn", 2.0, 16, beta_fast=20.0, beta_slow=2.0)
    config = GPTConfig(**{**LLAMA, "max_seq_len": 32, "rope_scaling": own})
    longer = longer_config(config, 128, "yarn").rope_scaling
    assert longer == RopeScaling("yarn", 8.0, 16, beta_fast=20.0, beta_slow=2.0)
    assert longer_config(config, 128, "linear").rope_scaling == RopeScaling("linear", 8.0, 16)
    assert longer_config(config, 8, "ntk").rope_scaling == RopeScaling("ntk", 1.0, 16)
    dynamic = config.replace(rope_scaling=RopeScaling("dynamic", 2.0, 16).to_dict())
    assert longer_config(dynamic, 128, "dynamic").rope_scaling == RopeScaling("dynamic", 2.0, 16)


def test_other_positions():
    sines = GPT(GPTConfig(**SMALL, position="sinusoidal")).eval()
    with torch.no_grad():
        short = sines(torch.zeros(1, 16, dtype=torch.long)).logits
        extend_context(sines, 40, "none")
        found = sines(torch.zeros(1, 40, dtype=torch.long)).logits
    torch.testing.assert_close(found[:, :16], short)
    with pytest.raises(ValueError, match="'linear' needs position 'rope', got 'sinusoidal'"):
        extend_context(sines, 40, "linear")
    with pytest.raises(
        ValueError, match="table of 256 rows, so the context cannot be changed to 9"
    ):
        longer_config(preset("gpt-micro"), 9, "none")
    with pytest.raises(ValueError, match=r"one of none, linear, ntk, dynamic.*'lineer'.*'linear'"):
        longer_config(build().config, 64, "lineer")
    with pytest.raises(ValueError, match="context must be an integer >= 1, got 0"):
        longer_config(build().config, 0, "linear")
