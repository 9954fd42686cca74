import math

import numpy as np
import pytest
import torch

from tokenization.tokenizer import Tokenizer
from training.batch import IGNORE_INDEX, Batch
from training.dataset import TokenBatches
from training.diagnostics import (
    DiagnosticsHook,
    LossWatch,
    attention_row_sums,
    check_data,
    gradient_norms,
    gradient_table,
    look_at_batch,
)

TEXT = "白日依山尽，黄河入海流。"


@pytest.fixture
def batch():
    tokenizer = Tokenizer.characters([TEXT])
    ids = torch.tensor([tokenizer.encode(TEXT), tokenizer.encode(TEXT[::-1])])
    return tokenizer, Batch(ids[:, :-1], ids[:, 1:].clone(), window_ids=(7, 30))


def test_a_batch_is_shown_as_text(batch):
    tokenizer, good = batch
    shown = look_at_batch(good, tokenizer).splitlines()
    assert shown[0].startswith("batch of 2 × 11 tokens, 22 targets (0 masked); ids ")
    assert shown[1] == "targets are the inputs shifted by one: yes"
    assert shown[2] == "row 0 (window 7)"
    assert shown[3] == f"  input   {TEXT[:-1]!r}"
    assert shown[4] == f"  target  {TEXT[1:]!r}"
    assert len(look_at_batch(good, tokenizer, rows=1).splitlines()) == 5
    assert repr(TEXT[:4]) in look_at_batch(good, tokenizer, columns=4)


def test_masked_targets_show_as_dots_and_wrong_targets_are_noticed(batch):
    tokenizer, good = batch
    good.targets[0, :3] = IGNORE_INDEX
    good.targets[1, -2:] = IGNORE_INDEX
    shown = look_at_batch(good, tokenizer).splitlines()
    assert "17 targets (5 masked)" in shown[0]
    assert "shifted by one: yes" in shown[1]
    assert shown[4] == f"  target  {'·' + TEXT[4:]!r}"
    assert shown[7] == f"  target  {TEXT[::-1][1:10] + '·'!r}"
    copied = Batch(good.inputs, good.inputs.clone())
    assert "shifted by one: NO" in look_at_batch(copied, tokenizer)


def test_gradient_norms_are_those_of_the_parameters(tiny_model):
    model = tiny_model()
    model.final_norm.weight.requires_grad_(False)
    ids = torch.randint(13, (2, 9))
    model(ids[:, :-1], ids[:, 1:]).loss.backward()
    norms = gradient_norms(model)
    assert set(norms) == {n for n, p in model.named_parameters() if p.requires_grad}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert norms[name] == pytest.approx(float(parameter.grad.norm()))
    model.zero_grad()
    assert set(gradient_norms(model).values()) == {0.0}


def test_the_table_points_at_dead_exploding_and_broken_layers(tiny_model):
    model = tiny_model(n_layers=3)
    ids = torch.randint(13, (2, 9))
    model(ids[:, :-1], ids[:, 1:]).loss.backward()
    notes = ("zero", "100 times", "not finite")
    assert not any(note in gradient_table(model) for note in notes)
    blocks = model.blocks
    for parameter in blocks[0].attention.parameters():
        parameter.grad.zero_()
    for parameter in blocks[1].feed_forward.parameters():
        parameter.grad.mul_(1e4)
    blocks[2].feed_forward.up_proj.weight.grad[0, 0] = math.nan
    lines = {line.split()[0]: line for line in gradient_table(model).splitlines()}
    assert "← zero" in lines["blocks.0.attention"]
    assert "← 100 times the median" in lines["blocks.1.feed_forward"]
    assert "← not finite" in lines["blocks.2.feed_forward"]
    assert "←" not in lines["blocks.2.attention"]


def test_attention_rows_sum_to_one_whatever_the_mask(tiny_model):
    model = tiny_model(n_layers=2, position="rope", qk_norm=True, n_kv_heads=1).train()
    ids = torch.randint(13, (2, 8))
    documents = torch.tensor([[0, 0, 1, 1, 1, 2, 2, 2]]).expand(2, -1)
    padding = torch.tensor([[False, False] + [True] * 6, [True] * 8])
    for options in ({}, {"document_ids": documents}, {"attention_mask": padding}):
        errors = attention_row_sums(model, ids, **options)
        assert set(errors) == {"blocks.0.attention", "blocks.1.attention"}
        assert max(errors.values()) < 1e-5
    assert model.training
    assert all(not module._forward_pre_hooks for module in model.modules())


def test_attention_that_does_not_sum_to_one_is_seen(tiny_model, monkeypatch):
    model = tiny_model(n_layers=2)
    broken = model.blocks[1].attention
    right = broken.attention_weights
    monkeypatch.setattr(broken, "attention_weights", lambda *a, **k: 0.9 * right(*a, **k))
    errors = attention_row_sums(model, torch.randint(13, (1, 8)))
    assert errors["blocks.0.attention"] < 1e-5
    assert errors["blocks.1.attention"] == pytest.approx(0.1, abs=1e-5)


# ── LossWatch ────────────────────────────────────────────────────────────────────────────────────


def watched(losses, **options):
    watch = LossWatch(**{"window": 5, "n_windows": 3, **options})
    return [advice for loss in losses if (advice := watch.update(loss, 0.03))]


def test_a_loss_that_stays_is_reported_once_with_the_advice():
    said = watched([4.6 + 0.01 * math.sin(step) for step in range(100)])
    assert len(said) == 1
    assert "the loss has not fallen in 15 steps: 4.60" in said[0]
    assert "learning rate between 1e-4 and 1e-3 (now 0.03)" in said[0]
    for topic in ("look at a batch", "gradient norm", "one batch by heart"):
        assert topic in said[0]


def test_a_rising_loss_is_reported_and_a_falling_one_is_not():
    assert len(watched([4.6 + 0.1 * step for step in range(40)])) == 1
    assert watched([4.6 - 0.02 * step for step in range(100)]) == []
    # it fell at first and then stayed: that is how trainings end
    assert watched([4.6] * 5 + [3.0] * 200) == []


def test_nan_does_not_poison_the_window():
    assert len(watched([4.6, math.nan, math.inf] * 15)) == 1
    assert watched([value for step in range(60) for value in (4.6 - 0.03 * step, math.nan)]) == []


def test_it_waits_for_its_windows():
    assert watched([4.6] * 14) == []
    assert len(watched([4.6] * 15)) == 1


# ── data ─────────────────────────────────────────────────────────────────────────────────────────


def test_data_problems_are_named():
    train, val = np.arange(100) % 13, np.arange(1, 41) % 13
    assert check_data(train, val, 16) == []
    assert check_data(train, None, 16) == []
    (short,) = check_data(train[:10], val, 16)
    assert "training corpus has 10 tokens, one block needs 17" in short
    (noisy,) = check_data(train, val[:12], 16)
    assert "validation corpus has 12 tokens" in noisy
    (same,) = check_data(train, train.copy(), 16)
    assert "training and validation hold the same tokens" in same
    assert check_data(train, (train + 1) % 13, 16) == []


# ── the hook ─────────────────────────────────────────────────────────────────────────────────────


def test_a_learning_run_hears_nothing(make_trainer, recorder):
    watch = LossWatch(window=5, n_windows=3)
    hooks = [recorder, DiagnosticsHook(watch=watch)]
    make_trainer(steps=60, learning_rate=1e-2, hooks=hooks).fit()
    assert recorder.warnings == []


def test_a_run_that_does_not_learn_hears_the_advice(make_trainer, recorder):
    watch = LossWatch(window=5, n_windows=3)
    hooks = [recorder, DiagnosticsHook(watch=watch)]
    make_trainer(steps=20, learning_rate=1e-7, hooks=hooks).fit()
    assert len(recorder.warnings) == 1
    assert "the loss has not fallen" in recorder.warnings[0]


def test_a_first_loss_far_above_guessing_is_noticed(make_trainer, tiny_model, recorder):
    model = tiny_model()
    with torch.no_grad():
        model.token_embedding.weight.mul_(300)
    make_trainer(model=model, steps=1, hooks=[recorder, DiagnosticsHook()]).fit()
    assert any("guessing gives log(13) = 2.56" in warning for warning in recorder.warnings)


def test_a_batch_that_is_not_learned_by_heart_is_noticed(make_trainer, new_recorder):
    for rate, n_warnings in ((1e-6, 1), (3e-2, 0)):
        recorder = new_recorder()
        make_trainer(
            overfit_one_batch=True,
            steps=80,
            learning_rate=rate,
            warmup_steps=0,
            hooks=[recorder, DiagnosticsHook()],
        ).fit()
        assert len(recorder.warnings) == n_warnings
    recorder = new_recorder()


def test_a_model_that_cannot_fit_is_refused_before_training(make_trainer, recorder, monkeypatch):
    monkeypatch.setattr("training.memory_advice.available_memory_bytes", lambda device: 1000)
    with pytest.raises(ValueError, match="it cannot fit"):
        make_trainer(hooks=[recorder, DiagnosticsHook()]).fit()
    assert recorder.steps == []
    hooks = [recorder, DiagnosticsHook(check_memory_first=False)]
    assert make_trainer(hooks=hooks, steps=2).fit().step == 2


def test_memory_that_may_not_suffice_is_a_warning(make_trainer, recorder, monkeypatch):
    from gpt_model.memory import training_memory
    from gpt_model.sizes import count_parameters

    trainer = make_trainer(hooks=[recorder, DiagnosticsHook()], steps=1)
    needed = training_memory(trainer.model.config, 4, 8).total
    weights = 4 * count_parameters(trainer.model.config).total
    room = int(needed / 0.9) - weights  # the weights are there already
    monkeypatch.setattr("training.memory_advice.available_memory_bytes", lambda device: room)
    trainer.fit()
    assert any("it may not fit. What would fit: batch_size 2" in w for w in recorder.warnings)


def test_models_that_are_no_gpt_are_watched_too(recorder):
    from training.train_config import TrainConfig
    from training.trainer import Trainer

    def loss_fn(model, x):
        return (model(x) ** 2).sum() + 4.0 * len(x), len(x)

    watch = LossWatch(window=3, n_windows=2)
    Trainer(
        torch.nn.Linear(2, 1),
        lambda index: torch.ones(3, 2),
        loss_fn,
        TrainConfig(steps=6, learning_rate=1e-9, device="cpu"),
        [recorder, DiagnosticsHook(watch=watch)],
    ).fit()
    assert len(recorder.warnings) == 1


def test_short_corpora_are_refused_by_the_batches():
    with pytest.raises(ValueError, match="the corpus has 5 tokens, but one block needs .* 9"):
        TokenBatches([1, 2, 3, 4, 5], 2, 8, seed=0)
