import dataclasses
import json

import pytest

from training.schedule import learning_rate
from training.train_config import ARITHMETIC_FIELDS, TrainConfig


def test_defaults_follow_the_advice():
    config = TrainConfig()
    assert config.learning_rate == 3e-4
    assert config.grad_clip == 1.0
    assert (config.warmup, config.decay, config.saving_interval) == (100, 200, 100)


def test_what_is_not_given_follows_from_the_rest():
    config = TrainConfig(steps=50, eval_every=7)
    assert (config.warmup, config.decay, config.saving_interval) == (5, 10, 7)
    config = TrainConfig(steps=50, warmup_steps=0, decay_steps=3, save_every=9)
    assert (config.warmup, config.decay, config.saving_interval) == (0, 3, 9)


def test_the_learning_rate_is_the_schedule_of_its_fields():
    config = TrainConfig(steps=40, learning_rate=0.01, min_lr_ratio=0.2, schedule="wsd")
    values = {"max_lr": 0.01, "min_lr": 0.002, "warmup_steps": 4, "total_steps": 40}
    for step in (0, 4, 20, 35, 39):
        expected = learning_rate(step, kind="wsd", decay_steps=8, **values)
        assert config.learning_rate_at(step) == expected


def test_json_round_trip():
    config = TrainConfig(steps=7, betas=(0.8, 0.9), grad_clip=None, patience=3)
    again = TrainConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert isinstance(again.betas, tuple)


def test_it_cannot_be_changed_in_passing():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig().steps = 5
    assert TrainConfig().replace(steps=5).steps == 5


def test_every_field_either_changes_the_arithmetic_or_only_how_we_look():
    looking = {"device", "eval_every", "eval_batches", "save_every", "keep_last", "patience"}
    looking |= {"sharded_checkpoints"}
    looking |= {"gradient_checkpointing"}  # the same numbers, computed twice
    looking |= {"parallel"}  # the same numbers, shared out
    names = {field.name for field in dataclasses.fields(TrainConfig)}
    # these decide when a step is left out, or which of two equal sums is taken
    sometimes = {"max_skipped_steps", "spike_action", "spike_factor", "spike_window"}
    assert names == set(ARITHMETIC_FIELDS) | looking | sometimes | {"deterministic"}
    assert len(ARITHMETIC_FIELDS) == len(set(ARITHMETIC_FIELDS))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be an integer >= 1, got 0"),
        ({"steps": True}, "steps must be an integer >= 1, got True"),
        ({"steps": 10.0}, "got 10.0"),
        ({"grad_accumulation": 0}, "grad_accumulation must be an integer >= 1, got 0"),
        ({"batch_size": 0}, "batch_size must be an integer >= 1, got 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be a finite number > 0, got nan"),
        ({"learning_rate": -1e-3}, "learning_rate .* got -0.001"),
        ({"learning_rate": float("1e999")}, "learning_rate .* got inf"),
        ({"min_lr_ratio": 1.5}, "min_lr_ratio must be a finite number >= 0 and <= 1, got 1.5"),
        ({"weight_decay": -1}, "weight_decay .* >= 0, got -1"),
        ({"betas": (0.9,)}, "betas must be two numbers"),
        ({"betas": 0.9}, "betas must be two numbers"),
        ({"betas": (0.9, 1.0)}, r"betas\[1\] must be a finite number >= 0 and < 1, got 1.0"),
        ({"sharded_checkpoints": True}, "sharded_checkpoints is for parallel 'fsdp'.*'none'"),
        ({"sharded_checkpoints": 1, "parallel": "fsdp"}, "sharded_checkpoints must be"),
        ({"grad_clip": 0.0}, "grad_clip must be a finite number > 0, got 0.0"),
        ({"schedule": "cosin"}, "schedule must be one of .*did you mean 'cosine'"),
        ({"optimizer": "sgd"}, "optimizer must be one of adamw, muon; got 'sgd'"),
        ({"precision": "fp8"}, "precision must be one of auto, fp32, bf16, fp16; got 'fp8'"),
        ({"device": 0}, "device must be a name such as 'auto' or 'cpu', got 0"),
        ({"seed": -1}, "seed must be an integer >= 0"),
        ({"eval_every": 0}, "eval_every must be an integer >= 1, got 0"),
        ({"patience": 0}, "patience must be an integer >= 1, got 0"),
        ({"max_skipped_steps": 0}, "max_skipped_steps must be an integer >= 1, got 0"),
        ({"overfit_one_batch": 1}, "overfit_one_batch must be true or false, got 1"),
        ({"steps": 10, "warmup_steps": 10}, "warmup_steps must be .* <= 9, got 10"),
        ({"warmup_step": 5}, "unknown key 'warmup_step' in TrainConfig; did you mean"),
    ],
)
def test_unreasonable_values_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig().replace(**changes)


def test_an_unknown_key_of_a_file_names_the_file():
    with pytest.raises(ValueError, match="unknown key 'lr' in run.json"):
        TrainConfig.from_dict({"lr": 1}, where="run.json")
