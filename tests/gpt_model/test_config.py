import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_model.config import PRESET_PURPOSES, PRESETS, GPTConfig, preset
from transformer_basics.rotary import RopeScaling

SMALL = {"vocab_size": 11, "max_seq_len": 8, "dim": 12, "n_layers": 2, "n_heads": 3}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_layers": 0}, r"n_layers must be an integer >= 1, got 0"),
        ({"n_layers": True}, r"n_layers must be an integer >= 1, got True \(bool\)"),
        ({"dim": 128.0}, r"dim must be an integer >= 1, got 128.0 \(float\)"),
        ({"vocab_size": -5}, r"vocab_size must be an integer >= 1, got -5"),
        ({"dim": 13}, r"dim must be divisible by n_heads: 13 % 3 = 1"),
        ({"n_kv_heads": 2}, r"n_heads must be divisible by n_kv_heads: 3 % 2 = 1"),
        ({"n_kv_heads": 0}, r"n_kv_heads must be an integer >= 1, got 0"),
        ({"dropout": 1.0}, r"dropout must be a finite number >= 0.0 and < 1.0, got 1.0"),
        ({"dropout": math.nan}, r"dropout .* got nan"),
        ({"init_std": math.inf}, r"init_std .* got inf"),
        ({"norm_eps": 0.0}, r"norm_eps must be a finite number > 0.0, got 0.0"),
        ({"rope_theta": -1.0}, r"rope_theta .* > 0.0, got -1.0"),
        ({"logit_softcap": 0.0}, r"logit_softcap .* > 0.0, got 0.0"),
        ({"norm": "rms"}, r"norm must be one of layernorm, rmsnorm; got 'rms'"),
        ({"position": "rotary"}, r"position must be one of learned, sinusoidal, rope, none"),
        ({"activation": "gleu"}, r"got 'gleu'; did you mean 'gelu'"),
        ({"norm_position": "sandwich"}, r"norm_position must be one of pre, post"),
        ({"tie_embeddings": 1}, r"tie_embeddings must be true or false, got 1"),
        ({"position": "rope", "head_dim": 5}, r"'rope' needs an even head_dim, got 5"),
        ({"rope_scaling": RopeScaling(kind="linear", factor=2.0)}, r"needs position 'rope'"),
        ({"position": "rope", "rope_scaling": 3}, r"rope_scaling must be a RopeScaling, got 3"),
        ({"sliding_window": 0}, r"sliding_window must be an integer >= 1, got 0"),
        ({"bigram_rows": 0}, r"bigram_rows must be an integer >= 1, got 0"),
        ({"token_shift": 1}, r"token_shift must be true or false, got 1"),
        ({"zero_init": None}, r"zero_init must be true or false, got None"),
    ],
)
def test_each_bad_value_is_named_with_its_limit(changes, message):
    with pytest.raises(ValueError, match=message):
        GPTConfig(**{**SMALL, **changes})


def test_unknown_and_missing_keys_are_named():
    with pytest.raises(ValueError, match="'n_layer' in config.json; did you mean 'n_layers'"):
        GPTConfig.from_dict({**SMALL, "n_layer": 2}, where="config.json")
    with pytest.raises(ValueError, match="lacks vocab_size, dim$"):
        GPTConfig.from_dict({"max_seq_len": 8, "n_layers": 1, "n_heads": 1})
    with pytest.raises(ValueError, match="did you mean 'dropout'"):
        GPTConfig(**SMALL).replace(drpout=0.1)
    with pytest.raises(ValueError, match="must be a JSON object, got list"):
        GPTConfig.from_json("[]")
    with pytest.raises(ValueError, match="not valid JSON: .* line 1"):
        GPTConfig.from_json("{,}")


def test_presets_by_name():
    assert preset("gpt-micro", vocab_size=65).vocab_size == 65
    with pytest.raises(ValueError, match="did you mean 'gpt2-medium'"):
        preset("gpt2-medum")
    assert set(PRESET_PURPOSES) == set(PRESETS)
    shapes = {name: (c.n_layers, c.dim, c.n_heads) for name, c in PRESETS.items()}
    assert shapes["gpt-micro"] == shapes["modern-micro"] == (4, 128, 4)
    assert shapes["gpt-mini"] == shapes["modern-mini"] == (6, 384, 6)
    assert shapes["gpt-small"] == shapes["modern-small"] == (8, 512, 8)
    assert shapes["gpt2"] == (12, 768, 12)
    assert shapes["gpt2-xl"] == (48, 1600, 25)


@given(
    heads=st.sampled_from([(1, None), (4, 2), (6, 3), (6, None)]),
    head_dim=st.sampled_from([None, 2, 6]),
    position=st.sampled_from(["learned", "sinusoidal", "rope", "none"]),
    gated=st.booleans(),
    tied=st.booleans(),
    softcap=st.none() | st.floats(0.5, 50),
    scaled=st.booleans(),
)
def test_json_round_trip_is_exact(heads, head_dim, position, gated, tied, softcap, scaled):
    scaling = RopeScaling(kind="yarn", factor=4.0, original_max_seq_len=8)
    config = GPTConfig(
        vocab_size=7,
        max_seq_len=32,
        dim=24,
        n_layers=1,
        n_heads=heads[0],
        n_kv_heads=heads[1],
        head_dim=head_dim,
        position=position,
        rope_scaling=scaling if scaled and position == "rope" else None,
        gated_ffn=gated,
        tie_embeddings=tied,
        logit_softcap=softcap,
    )
    assert GPTConfig.from_json(config.to_json()) == config
    assert GPTConfig.from_dict(json.loads(config.to_json())) == config
    assert hash(config) == hash(config.replace())


def test_fields_left_none_follow_the_others():
    config = GPTConfig(**SMALL)
    assert (config.kv_heads, config.head_size, config.ffn_size) == (3, 4, 48)
    wider = config.replace(dim=24)
    assert (wider.head_size, wider.ffn_size) == (8, 96)
    assert config.replace(dim=768, gated_ffn=True).ffn_size == 2048


def test_a_configuration_cannot_be_changed_in_place():
    with pytest.raises(AttributeError):
        GPTConfig(**SMALL).dim = 5
