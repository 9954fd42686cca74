import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt_model.config import PRESETS, GPTConfig
from gpt_model.model import GPT
from gpt_model.sizes import (
    count_parameters,
    flops_per_token,
    human,
    matmul_parameters,
    preset_table,
)

KNOWN = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
}


@pytest.mark.parametrize("name", list(PRESETS))
def test_formula_equals_the_model_built_on_the_meta_device(name):
    config = PRESETS[name]
    model = GPT.on_meta(config)
    count = count_parameters(config)
    assert count.total == model.num_parameters() == KNOWN.get(name, count.total)
    parts = {"token_embedding": 0, "position_embedding": 0, "attention": 0, "feed_forward": 0}
    parts |= {"norms": 0, "lm_head": 0}
    for parameter_name, parameter in model.named_parameters():
        part = next(
            (
                p
                for p in ("attention.", "feed_forward.", "embedding", "lm_head")
                if p in parameter_name
            ),
            "norms",
        )
        part = parameter_name.split(".")[0] if part == "embedding" else part.rstrip(".")
        parts[part] += parameter.numel()
    assert count.by_part() == {part: number for part, number in parts.items() if number}


@given(
    st.builds(
        GPTConfig,
        vocab_size=st.integers(1, 40),
        max_seq_len=st.integers(1, 20),
        dim=st.sampled_from([12, 24]),
        n_layers=st.integers(1, 3),
        n_heads=st.sampled_from([2, 6]),
        n_kv_heads=st.sampled_from([None, 1, 2]),
        head_dim=st.sampled_from([None, 4, 10]),
        ffn_dim=st.sampled_from([None, 17]),
        norm=st.sampled_from(["layernorm", "rmsnorm"]),
        norm_position=st.sampled_from(["pre", "post"]),
        qk_norm=st.booleans(),
        position=st.sampled_from(["learned", "sinusoidal", "rope", "none"]),
        gated_ffn=st.booleans(),
        qkv_bias=st.booleans(),
        proj_bias=st.booleans(),
        tie_embeddings=st.booleans(),
        token_shift=st.booleans(),
        bigram_rows=st.sampled_from([None, 7]),
    )
)
def test_formula_equals_the_model_for_any_configuration(config):
    model = GPT.on_meta(config)
    assert count_parameters(config).total == model.num_parameters()
    linears = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    assert matmul_parameters(config) == sum(m.weight.numel() for m in linears)


def test_the_previous_token_is_counted_apart():
    config = PRESETS["gpt-micro"].replace(token_shift=True, bigram_rows=100)
    count, plain = count_parameters(config), count_parameters(PRESETS["gpt-micro"])
    assert count.by_part()["previous_token"] == 128 + 100 * 128
    assert count.non_embedding == plain.non_embedding
    assert flops_per_token(config) == flops_per_token(PRESETS["gpt-micro"])  # look-ups


def test_flops_agree_with_torch_counting_a_real_forward_and_backward():
    from torch.utils.flop_counter import FlopCounterMode

    config = PRESETS["gpt-micro"].replace(vocab_size=65, max_seq_len=64)
    model = GPT(config)
    model.use_implementation("lesson")  # its matrix products are visible to the counter
    ids = torch.randint(65, (2, 64))
    with FlopCounterMode(display=False) as counter:
        loss = model(ids, ids).loss
        forward = counter.get_total_flops()
        loss.backward()
    tokens = 2 * 64
    assert forward / tokens == flops_per_token(config, 64, training=False)
    assert counter.get_total_flops() / tokens == pytest.approx(
        flops_per_token(config, 64), rel=0.01
    )
    assert flops_per_token(config, 64) == 6 * matmul_parameters(config) + 12 * 4 * 128 * 64


def test_a_sliding_window_bounds_the_attention_flops():
    config = PRESETS["gpt2"]
    assert flops_per_token(config.replace(sliding_window=128), 1024) == flops_per_token(config, 128)


def test_the_table_shows_every_preset_with_its_exact_count():
    text = preset_table()
    for name, config in PRESETS.items():
        line = next(line for line in text.splitlines() if f" {name} " in line)
        assert f"{count_parameters(config).total:,}" in line
    assert "…" not in text


def test_human_numbers():
    assert human(999) == "999"
    assert human(1234567) == "1.23M"
    assert human(5.16e6) == "5.16M"
    assert human(999_999, "B") == "1MB"
