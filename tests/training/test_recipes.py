import pytest
import torch

from gpt_model.model import GPT
from gpt_model.sizes import count_parameters, flops_per_token
from training.accumulation import language_model_loss
from training.dataset import TokenBatches
from training.recipes import RECIPES, recipe
from training.trainer import Trainer

VOCABULARY = 65  # tinyshakespeare's characters


def work(name):
    """Floating-point operations of the whole run."""
    return RECIPES[name].n_tokens * flops_per_token(RECIPES[name].model_config(VOCABULARY))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_builds_and_takes_a_step(name):
    one = recipe(name)
    config = one.model_config(7, max_seq_len=8, dim=16, n_heads=2, n_layers=1)
    training = one.train_config(steps=2, warmup_steps=0, decay_steps=1, device="cpu")
    batches = TokenBatches(torch.arange(100) % 7, training.batch_size, 8, seed=0)
    model = GPT(config)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    Trainer(model, batches, language_model_loss, training).fit()
    moved = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
    assert any("token_embedding" in name for name in moved)


@pytest.mark.parametrize("name", ["classic", "sprint", "steady"])
def test_those_compared_with_nanogpt_are_no_larger(name):
    assert count_parameters(RECIPES[name].model_config(VOCABULARY)).total <= 850_000


def test_the_speedrun_is_smaller_than_gpt_mini():
    assert count_parameters(RECIPES["speedrun"].model_config(VOCABULARY)).total <= 10_700_000


def test_tokens_are_steps_times_batch_times_length():
    assert RECIPES["classic"].n_tokens == 2000 * 12 * 64
    one = RECIPES["sprint"]
    config = one.train_config()
    assert one.n_tokens == config.steps * config.batch_size * one.model["max_seq_len"]


def test_the_sprint_computes_a_twentieth_of_the_classic():
    assert 20 * work("sprint") < work("classic")


def test_changes_and_unknown_names():
    assert recipe("steady").model_config(9, dropout=0.1).dropout == 0.1
    assert recipe("steady").train_config(seed=3).seed == 3
    with pytest.raises(ValueError, match="did you mean 'dropout'"):
        recipe("steady").model_config(9, dropot=0.1)
    with pytest.raises(ValueError, match="did you mean 'sprint'"):
        recipe("sprnt")
