"""Which layers are chosen, how strongly they are scaled, and what a typo gets."""

import math

import pytest

from finetuning.lora_config import LoRAConfig, first_pattern, match_names

NAMES = [
    f"blocks.{index}.{layer}"
    for index in range(2)
    for layer in ("attention.q_proj", "attention.out_proj", "feed_forward.up_proj")
] + ["lm_head"]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["q_proj"], ["blocks.0.attention.q_proj", "blocks.1.attention.q_proj"]),
        (["lm_head"], ["lm_head"]),
        (["blocks.1.*"], [name for name in NAMES if name.startswith("blocks.1")]),
        ([r"re:blocks\.0\.attention\..*"], NAMES[:2]),
        (["up_proj", "blocks.0.feed_forward.up_proj"], [NAMES[2], NAMES[5]]),
    ],
)
def test_patterns_choose_in_model_order(patterns, expected):
    assert match_names(patterns, NAMES) == expected


@pytest.mark.parametrize(
    "pattern", ["proj", "head", "q_proj.", "re:q_proj", r"re:blocks\.0", "block*.q"]
)
def test_half_names_choose_nothing(pattern):
    with pytest.raises(ValueError, match="matches no Linear layer"):
        match_names([pattern], NAMES)


def test_one_typo_among_good_patterns_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match=r"'q_porj'.*did you mean 'q_proj'\? candidates: q_proj, "):
        match_names(["up_proj", "q_porj"], NAMES)


def test_a_model_without_linear_layers_says_so():
    with pytest.raises(ValueError, match="no Linear layer inside"):
        match_names(["q_proj"], [])


def test_scaling_of_plain_and_rank_stabilised():
    assert LoRAConfig(r=8, alpha=16).scaling_of("x") == 2.0
    assert LoRAConfig(r=8, alpha=16, use_rslora=True).scaling_of("x") == 16 / math.sqrt(8)


def test_patterns_set_rank_and_alpha_for_single_layers():
    config = LoRAConfig(r=8, alpha=16, rank_pattern={"up_proj": 2}, alpha_pattern={"1.*up_proj": 3})
    assert (config.rank_of(NAMES[0]), config.scaling_of(NAMES[0])) == (8, 2.0)
    assert (config.rank_of(NAMES[2]), config.scaling_of(NAMES[2])) == (2, 8.0)
    assert (config.rank_of(NAMES[5]), config.scaling_of(NAMES[5])) == (2, 1.5)


def test_first_pattern_starts_at_a_dot_and_ends_at_the_end():
    assert first_pattern(["q_proj"], "a.q_proj") == "q_proj"
    assert first_pattern(["proj"], "a.q_proj") is None
    assert first_pattern(["q"], "a.q_proj") is None
    assert first_pattern(["x", ".*proj", "q_proj"], "a.q_proj") == ".*proj"


def test_a_single_string_is_one_target():
    assert LoRAConfig(target="q_proj").target == ("q_proj",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"r": 0}, r"r must be an integer >= 1, got 0"),
        ({"r": True}, r"r must be an integer >= 1, got True"),
        ({"r": 2.0}, r"r must be an integer"),
        ({"alpha": 0.0}, r"alpha must be .* > 0.0, got 0.0"),
        ({"alpha": float("nan")}, r"alpha must be a finite number"),
        ({"dropout": 1.0}, r"dropout must be .*< 1.0, got 1.0"),
        ({"dropout": -0.1}, r"dropout must be .*>= 0.0"),
        ({"use_dora": 1}, r"use_dora must be true or false"),
        ({"use_rslora": "yes"}, r"use_rslora must be true or false"),
        ({"target": ()}, r"target must name at least one"),
        ({"target": ("q_proj", "")}, r"target must name at least one"),
        ({"target": ("re:[",)}, r"target: '\[' is not a regular expression"),
        ({"rank_pattern": {"(": 4}}, r"rank_pattern: '\(' is not a regular expression"),
        (
            {"rank_pattern": {"q_proj": 0}},
            r"rank_pattern\['q_proj'\] must be an integer >= 1, got 0",
        ),
        ({"alpha_pattern": {"q_proj": -1.0}}, r"alpha_pattern\['q_proj'\] must be"),
    ],
)
def test_bad_settings_are_refused_with_value_and_limit(change, message):
    with pytest.raises(ValueError, match=message):
        LoRAConfig(**change)


def test_unknown_setting_is_refused():
    with pytest.raises(TypeError, match="rank"):
        LoRAConfig(rank=8)
