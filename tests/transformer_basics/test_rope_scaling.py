"""Every scaling against transformers' own, and the settings that must be refused."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer_basics.rope_scaling import SCALINGS, RopeScaling, rope_frequencies
from transformer_basics.rotary import RotaryEmbedding


def oracle(kind, head_dim, theta, length, factor, seq_len=None, **parameters):
    """What transformers computes: (frequencies, factor of cos and sin)."""
    utilities = pytest.importorskip("transformers.modeling_rope_utils")
    from transformers import LlamaConfig

    names = {kind: "dynamic" if kind == "ntk" else kind for kind in SCALINGS}
    settings = {"rope_type": names[kind], "rope_theta": theta, "factor": factor, **parameters}
    if kind in ("yarn", "llama3"):
        settings["original_max_position_embeddings"] = length
    if kind == "ntk":  # "dynamic" with factor 1 at length s·L is the static change of base by s
        settings["factor"], seq_len = 1.0, int(factor * length)
    config = LlamaConfig(
        hidden_size=head_dim * 4,
        num_attention_heads=4,
        head_dim=head_dim,
        max_position_embeddings=length,
        rope_theta=theta,
        rope_scaling=settings,
    )
    compute = utilities.ROPE_INIT_FUNCTIONS[names[kind]]
    return compute(config, torch.device("cpu"), seq_len=seq_len)


@pytest.mark.parametrize("kind", [kind for kind in SCALINGS if kind != "dynamic"])
@pytest.mark.parametrize("theta", [10000.0, 500000.0])
@pytest.mark.parametrize("head_dim", [8, 64, 128])
@pytest.mark.parametrize("factor", [1.0, 2.0, 8.0])
def test_equals_transformers(kind, theta, head_dim, factor):
    for length in (128, 8192):
        extra = {"low_freq_factor": 1.0, "high_freq_factor": 4.0} if kind == "llama3" else {}
        expected, expected_factor = oracle(kind, head_dim, theta, length, factor, **extra)
        scaling = RopeScaling(kind, factor, length)
        frequencies, attention = rope_frequencies(head_dim, theta, scaling)
        torch.testing.assert_close(frequencies.float(), expected, rtol=2e-6, atol=0)
        assert abs(attention - expected_factor) < 1e-12


@pytest.mark.parametrize("head_dim", [8, 64])
@pytest.mark.parametrize("factor", [1.0, 2.0, 8.0])
@pytest.mark.parametrize("seq_len", [1, 100, 128, 129, 200, 1024])
def test_dynamic_follows_the_length_as_in_transformers(head_dim, factor, seq_len):
    expected, _ = oracle("dynamic", head_dim, 1e4, 128, factor, seq_len=seq_len)
    scaling = RopeScaling("dynamic", factor, 128)
    frequencies, attention = rope_frequencies(head_dim, 1e4, scaling, seq_len)
    torch.testing.assert_close(frequencies.float(), expected, rtol=2e-6, atol=0)
    assert attention == 1.0
    # the rotation takes the length of the model, and keeps it when its table grows
    rotary = RotaryEmbedding(head_dim, scaling=scaling, max_seq_len=seq_len)
    x = torch.randn(1, 1, 1, head_dim)
    before = rotary(x, torch.tensor([0 if seq_len == 1 else 1]))
    rotary(x, torch.tensor([5000]))
    torch.testing.assert_close(rotary(x, torch.tensor([0 if seq_len == 1 else 1])), before)
    angle = RotaryEmbedding(head_dim, scaling=scaling.fixed(seq_len), max_seq_len=16)
    torch.testing.assert_close(rotary(x, torch.tensor([7])), angle(x, torch.tensor([7])))


def test_turning_back_is_the_earlier_position():
    for scaling in (None, RopeScaling("yarn", 4.0, 16), RopeScaling("ntk", 2.0)):
        rotary = RotaryEmbedding(8, scaling=scaling)
        x = torch.randn(1, 2, 5, 8)
        moved = rotary.turn_back(rotary(x, offset=40), 33)
        torch.testing.assert_close(moved, rotary(x, offset=7), atol=1e-5, rtol=1e-5)


def test_equals_transformers_with_other_bounds():
    scaling = RopeScaling("llama3", 32.0, 8192, low_freq_factor=2.0, high_freq_factor=3.0)
    expected, _ = oracle("llama3", 64, 5e5, 8192, 32.0, low_freq_factor=2.0, high_freq_factor=3.0)
    torch.testing.assert_close(rope_frequencies(64, 5e5, scaling)[0].float(), expected)
    scaling = RopeScaling("yarn", 4.0, 4096, beta_fast=16.0, beta_slow=2.0, attention_factor=0.7)
    expected, factor = oracle(
        "yarn", 64, 1e4, 4096, 4.0, beta_fast=16.0, beta_slow=2.0, attention_factor=0.7
    )
    torch.testing.assert_close(rope_frequencies(64, 1e4, scaling)[0].float(), expected)
    assert rope_frequencies(64, 1e4, scaling)[1] == factor == 0.7


def test_plain_frequencies_by_definition():
    frequencies, factor = rope_frequencies(8, 100.0)
    expected = [100.0 ** (-2 * i / 8) for i in range(4)]
    torch.testing.assert_close(frequencies, torch.tensor(expected).double())
    assert factor == 1.0


@given(
    st.sampled_from(list(SCALINGS)),
    st.floats(1.0, 64.0),
    st.sampled_from([2, 4, 16, 128]),
    st.integers(16, 100_000),
)
@settings(max_examples=60)
def test_nothing_speeds_up_and_nothing_slows_down_too_much(kind, factor, head_dim, length):
    plain, _ = rope_frequencies(head_dim)
    scaling = RopeScaling(kind, factor if kind != "dynamic" else 1.0, length)
    scaled, _ = rope_frequencies(head_dim, scaling=scaling, length=round(factor * length))
    slowed = plain / scaled
    assert (slowed >= 1 - 1e-9).all()
    assert (slowed <= factor * (1 + 1e-9) + 1 / length).all()


def test_linear_squeezes_positions_and_yarn_sharpens():
    x = torch.randn(1, 1, 1, 16)
    linear = RotaryEmbedding(16, scaling=RopeScaling("linear", 4.0))
    torch.testing.assert_close(
        linear(x, torch.tensor([40])), RotaryEmbedding(16)(x, torch.tensor([10]))
    )
    yarn = RotaryEmbedding(16, scaling=RopeScaling("yarn", 8.0, 1024))
    growth = float((yarn(x, torch.tensor([5])).norm() / x.norm()).detach())
    assert abs(growth - (0.1 * math.log(8.0) + 1.0)) < 1e-5


@pytest.mark.parametrize("kind", SCALINGS)
def test_json_round_trip(kind):
    scaling = RopeScaling(kind, 4.0, 2048, beta_fast=20.0, attention_factor=1.5)
    assert RopeScaling.from_dict(json.loads(json.dumps(scaling.to_dict()))) == scaling


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"kind": "yarm", "factor": 2.0},
            r"must be one of linear, ntk, dynamic, yarn, llama3; .*'yarn'",
        ),
        ({"kind": "linear", "factor": 0.5}, r"factor must be .* >= 1.0, got 0.5"),
        ({"kind": "linear", "factor": float("nan")}, r"factor must be a finite number"),
        ({"kind": "yarn", "factor": 2.0}, r"'yarn' needs original_max_seq_len.*got None"),
        ({"kind": "llama3", "factor": 2.0}, r"'llama3' needs original_max_seq_len"),
        ({"kind": "dynamic", "factor": 1.0}, r"'dynamic' needs original_max_seq_len"),
        ({"kind": "ntk", "factor": 2.0, "original_max_seq_len": 0}, r"integer >= 1, got 0"),
        ({"kind": "ntk", "factor": 2.0, "high_freq_factor": 1.0}, r"high_freq_factor .* > 1.0"),
        ({"kind": "ntk", "factor": 2.0, "beta_fast": 0.5}, r"beta_fast .* > 1.0, got 0.5"),
        ({"kind": "ntk", "factor": 2.0, "attention_factor": 0.0}, r"attention_factor .* > 0.0"),
        ({"kind": "ntk", "factr": 2.0}, r"unknown key 'factr' in rope_scaling; .*'factor'"),
        ({"factor": 2.0}, r"needs the key 'kind'"),
        ({"kind": "ntk"}, r"needs the key 'factor'"),
    ],
)
def test_wrong_settings_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        RopeScaling.from_dict(values)
