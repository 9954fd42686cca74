"""One dial: every depth gives a valid, larger run; the sizes are those that the page promises."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_model.sizes import count_parameters, flops_per_token
from training.depth_dial import DEEPEST, from_depth

VOCABULARY = 1000
DEPTHS = range(1, DEEPEST + 1)


def facts(depth):
    """What must never shrink: parameters, tokens, updates, tokens per update, operations."""
    chosen = from_depth(depth)
    config = chosen.model_config(VOCABULARY)
    training = chosen.train_config()
    per_step = chosen.n_tokens // training.steps
    work = chosen.n_tokens * flops_per_token(config)
    return count_parameters(config).total, chosen.n_tokens, training.steps, per_step, work


def test_deeper_is_never_less_of_anything():
    rows = [facts(depth) for depth in DEPTHS]
    for shallow, deep in zip(rows, rows[1:], strict=False):
        size, tokens, steps, per_step, work = zip(shallow, deep, strict=True)
        for before, after in (size, tokens, work):
            assert after > before
        assert per_step[1] >= per_step[0]
        # the batch is a whole number of rows: its rounding may cost a few of the updates
        assert steps[1] > 0.97 * steps[0]


@given(depth=st.integers(1, DEEPEST))
def test_every_depth_is_what_the_formulas_say(depth):
    chosen = from_depth(depth)
    config, training = chosen.model_config(VOCABULARY), chosen.train_config()
    count = count_parameters(config)
    blocks = 12 * depth * (64 * depth) ** 2
    assert (config.n_layers, config.dim) == (depth, 64 * depth)
    assert config.head_size in (32, 64)
    norms_of_heads = 2 * depth * config.head_size
    assert count.attention + count.feed_forward == blocks + norms_of_heads
    # twenty tokens per parameter of the blocks, up to less than half an update
    per_step = training.batch_size * training.grad_accumulation * config.max_seq_len
    assert abs(chosen.n_tokens - 20 * blocks) <= per_step / 2
    assert training.batch_size <= 32
    # the batch grows as the root of the tokens, to a whole number of rows
    wanted = max(config.max_seq_len, 1024 * (20 * blocks / 1e6) ** 0.5)
    assert abs(per_step - wanted) <= config.max_seq_len * training.grad_accumulation / 2
    assert training.warmup_steps + training.decay_steps <= training.steps


def test_the_learning_rate_keeps_the_size_of_an_update():
    """Muon's update has the spectral norm 0.2 sqrt(D): times the rate it is the same everywhere."""
    sizes = {
        depth: from_depth(depth).train_config().learning_rate * (64 * depth) ** 0.5
        for depth in DEPTHS
    }
    assert max(sizes.values()) == pytest.approx(min(sizes.values()))


@pytest.mark.parametrize("depth", [0, -1, 65, True, 2.0, "3"])
def test_what_is_not_a_depth_is_refused(depth):
    with pytest.raises(ValueError, match="depth must be .*got"):
        from_depth(depth)
