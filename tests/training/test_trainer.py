import copy
import signal
import threading
import time

import pytest
import torch
from torch import nn

from gpt_model.model import GPT
from gpt_model.model_directory import find_model_directory
from tokenization.tokenizer import Tokenizer
from training.accumulation import language_model_loss
from training.checkpoint import list_checkpoints, load_weights
from training.dataset import TokenBatches
from training.hook_base import Hook
from training.train_config import TrainConfig
from training.trainer import Trainer, TrainingDivergedError


class Interrupt(Hook):
    """Presses Ctrl-C after a step, or in the middle of an evaluation."""

    def __init__(self, after, times=1):
        self.after, self.times = after, times

    def on_step(self, trainer, report):
        if report.step == self.after:
            for _ in range(self.times):
                signal.raise_signal(signal.SIGINT)


def test_the_loss_falls_and_the_result_says_so(make_trainer, recorder):
    trainer = make_trainer(steps=80, learning_rate=2e-2, hooks=[recorder], bytes_per_token=2.0)
    result = trainer.fit()
    assert recorder.losses[0] > 2.3  # log 13 = 2.56
    assert result.val_loss < 1.2
    assert result.loss == recorder.losses[-1]
    assert (result.step, result.tokens_seen, result.skipped_steps) == (80, 80 * 32, 0)
    assert result.best_loss == min(e.loss for e in recorder.evaluations)
    assert result.bits_per_byte == pytest.approx(result.val_loss / 0.693147 / 2, rel=1e-5)
    assert not result.interrupted
    assert not result.stopped_early
    assert result.directory is None


def test_the_order_of_events(make_trainer, recorder, tmp_path):
    make_trainer(steps=6, eval_every=3, hooks=[recorder], run_dir=tmp_path).fit()
    third = ["step", "step", "step", "evaluate", "write", "save"]
    assert recorder.events == ["start", "evaluate", *third, *third, "end"]
    assert [e.step for e in recorder.evaluations] == [0, 3, 6]
    assert [s.step for s in recorder.steps] == [1, 2, 3, 4, 5, 6]
    assert recorder.saved == ["step-000003", "step-000006"]


def test_a_last_step_between_two_evaluations_is_evaluated_and_saved(
    make_trainer, recorder, tmp_path
):
    make_trainer(steps=7, eval_every=5, hooks=[recorder], run_dir=tmp_path).fit()
    assert [e.step for e in recorder.evaluations] == [0, 5, 7]
    assert recorder.saved == ["step-000005", "step-000007"]


def test_saving_has_its_own_interval(make_trainer, recorder, tmp_path):
    trainer = make_trainer(
        steps=7,
        eval_every=100,
        save_every=3,
        keep_last=9,
        hooks=[recorder],
        run_dir=tmp_path,
        val_batches=None,
    )
    trainer.fit()
    assert recorder.saved == ["step-000003", "step-000006", "step-000007"]
    assert recorder.evaluations == []


def test_accumulation_is_the_large_batch_through_the_whole_loop(make_trainer, tiny_model):
    """Eight rows at once, or four times two: window numbers and updates agree."""
    tokens = [(step * step + step) % 13 for step in range(500)]
    results, models = [], []
    for rows, pieces in ((8, 1), (2, 4)):
        model = tiny_model(dropout=0.0)
        batches = TokenBatches(tokens, rows, 8, seed=3)
        trainer = make_trainer(
            model=model, batches=batches, grad_accumulation=pieces, eps=1e-3, steps=6
        )
        results.append(trainer.fit())
        models.append(model)
    assert results[1].loss == pytest.approx(results[0].loss, abs=1e-6)
    assert results[1].val_loss == pytest.approx(results[0].val_loss, abs=1e-6)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_the_same_seed_gives_the_same_run_and_another_does_not(make_trainer, tiny_model):
    def run(seed, disturb=False):
        model = tiny_model()
        if disturb:
            torch.rand(100)  # what happened before fit() must not matter
        trainer = Trainer(
            model,
            TokenBatches(list(range(13)) * 20, 4, 8, seed=0),
            config=TrainConfig(steps=4, seed=seed, device="cpu"),
        )
        return trainer.fit().loss

    assert run(0) == run(0, disturb=True) != run(1)  # dropout differs


def test_looking_more_often_changes_no_weight(make_trainer, tiny_model, same_weights):
    class Curious(Hook):
        def on_evaluate(self, trainer, report):
            trainer.evaluate()

    models = tiny_model(), tiny_model()
    make_trainer(model=models[0], eval_every=100).fit()
    make_trainer(model=models[1], eval_every=1, hooks=[Curious()]).fit()
    assert same_weights(*models)


def test_evaluation_is_the_mean_over_all_targets_without_dropout(make_trainer, tiny_model):
    trainer = make_trainer(eval_batches=3)
    model = trainer.model.eval()
    batches = list(trainer.val_batches())[:3]
    with torch.no_grad():
        pairs = [language_model_loss(model, batch) for batch in batches]
    expected = sum(float(loss) for loss, _ in pairs) / sum(count for _, count in pairs)
    model.train()
    report = trainer.evaluate()
    assert report.loss == pytest.approx(expected, rel=1e-6)
    assert report.n_targets == sum(count for _, count in pairs)
    assert model.training
    assert report.loss == trainer.evaluate().loss


def test_evaluating_without_data_is_refused(make_trainer):
    with pytest.raises(ValueError, match="give the Trainer val_batches"):
        make_trainer(val_batches=None).evaluate()
    with pytest.raises(ValueError, match="no targets"):
        make_trainer(val_batches=lambda: []).evaluate()


# ── early stop, best ─────────────────────────────────────────────────────────────────────────────


def losses_of(values):
    """val_batches and a loss function whose validation losses are `values`, one after another."""
    remaining = iter(values)

    def loss_fn(model, batch):
        if model.training:
            return language_model_loss(model, batch)
        return torch.tensor(next(remaining)), 1

    return loss_fn


def test_early_stop_waits_for_patience_evaluations_without_gain(make_trainer, tmp_path, recorder):
    values = [9.0, 3.0, 2.0, 2.5, 1.0, 1.0, 1.5, 1.2, 0.1]
    trainer = make_trainer(
        steps=50,
        eval_every=2,
        eval_batches=1,
        patience=3,
        loss_fn=losses_of(values),
        run_dir=tmp_path,
        hooks=[recorder],
    )
    result = trainer.fit()
    # steps 0, 2, 4 … : the best is 1.0 at step 8; an equal loss is no gain, but as good
    assert result.stopped_early
    assert (result.step, result.best_step, result.best_loss) == (14, 10, 1.0)
    assert [e.improved for e in recorder.evaluations] == [
        *(False, True, True, False, True, False, False, False),
    ]
    assert [c.step for c in list_checkpoints(tmp_path)] == [10, 12, 14]
    assert result.val_loss == pytest.approx(1.2)


def test_the_best_checkpoint_stays_and_is_what_inference_finds(make_trainer, tmp_path):
    values = [9.0, 3.0, 1.0, 2.0, 2.5, 2.6, 2.7]
    trainer = make_trainer(
        steps=12, eval_every=2, eval_batches=1, loss_fn=losses_of(values), run_dir=tmp_path
    )
    result = trainer.fit()
    assert [c.step for c in list_checkpoints(tmp_path)] == [4, 10, 12]
    assert (result.best_step, result.best_loss) == (4, 1.0)
    assert find_model_directory(tmp_path).name == "step-000004"
    best = GPT.load(find_model_directory(tmp_path))
    load_weights(tmp_path / "step-000004", trainer.model)
    assert torch.equal(best.lm_head.weight, trainer.model.lm_head.weight)


def test_a_validation_loss_that_is_not_finite_is_never_the_best(make_trainer, tmp_path, recorder):
    values = [9.0, float("nan"), 3.0, float("nan")]
    trainer = make_trainer(
        steps=6,
        eval_every=2,
        eval_batches=1,
        loss_fn=losses_of(values),
        run_dir=tmp_path,
        hooks=[recorder],
    )
    result = trainer.fit()
    assert (result.best_loss, result.best_step, result.val_loss) == (3.0, 4, None)
    assert any("validation loss at step 2 is nan" in w for w in recorder.warnings)
    assert find_model_directory(tmp_path).name == "step-000004"


# ── NaN ──────────────────────────────────────────────────────────────────────────────────────────


def poison(*steps):
    """NaN in these steps (counted from 0), whatever the batch."""
    count = iter(range(10_000))

    def loss_fn(model, batch):
        loss, n_targets = language_model_loss(model, batch)
        if model.training and next(count) in steps:
            loss = loss * float("nan")
        return loss, n_targets

    return loss_fn


def test_a_poisoned_step_is_skipped_and_reported(make_trainer, recorder):
    trainer = make_trainer(loss_fn=poison(3), hooks=[recorder])
    result = trainer.fit()
    assert result.skipped_steps == 1
    assert recorder.steps[3].skipped
    windows = ", ".join(str(number) for number in trainer.batches(3).window_ids)
    assert len(recorder.warnings) == 1
    assert (
        f"step 4 skipped, weights untouched: the loss is nan; windows {windows}"
        in (recorder.warnings[0])
    )
    assert result.step == 12
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def test_warnings_reach_python_when_no_hook_listens(make_trainer):
    with pytest.warns(UserWarning, match="step 4 skipped"):
        make_trainer(loss_fn=poison(3)).fit()


def test_too_many_bad_steps_in_a_row_stop_the_run(make_trainer, recorder, tmp_path):
    bad = poison(2, 3, 5, 6, 7, 8)  # two in a row are borne, then one good, then three
    trainer = make_trainer(
        loss_fn=bad, max_skipped_steps=3, hooks=[recorder], run_dir=tmp_path, steps=20
    )
    with pytest.raises(TrainingDivergedError) as stop:
        trainer.fit()
    message = str(stop.value)
    assert "stopped at step 8: 3 steps in a row" in message
    assert "max_skipped_steps 3" in message
    assert "learning_rate 0.005" in message
    assert "step-000004" in message  # the last good checkpoint
    assert recorder.events[-1] == "end"
    assert recorder.result is None
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def test_fp16_finding_its_scale_is_no_fault(make_trainer, recorder):
    trainer = make_trainer(hooks=[recorder], steps=60, max_skipped_steps=3)
    trainer.take_step.scaler.enabled, trainer.take_step.scaler.scale = True, 2.0**90
    result = trainer.fit()
    assert 10 < result.skipped_steps < 50
    assert recorder.warnings == []


# ── interruption ─────────────────────────────────────────────────────────────────────────────────


def test_ctrl_c_finishes_the_step_saves_and_returns(make_trainer, tmp_path, recorder):
    before = signal.getsignal(signal.SIGINT)
    trainer = make_trainer(run_dir=tmp_path, hooks=[recorder, Interrupt(after=6)])
    result = trainer.fit()
    assert result.interrupted
    assert result.step == 6
    assert [c.step for c in list_checkpoints(tmp_path)][-1] == 6
    assert recorder.events[-3:] == ["write", "save", "end"]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_stops_at_once(make_trainer, tmp_path, recorder):
    before = signal.getsignal(signal.SIGINT)
    trainer = make_trainer(run_dir=tmp_path, hooks=[recorder, Interrupt(after=6, times=2)])
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    assert [c.step for c in list_checkpoints(tmp_path)] == [4]
    assert recorder.events[-1] == "end"
    assert signal.getsignal(signal.SIGINT) is before
    make_trainer(run_dir=tmp_path).fit(resume=True)  # the lock was released


def test_ctrl_c_cuts_an_evaluation_short(make_trainer, tmp_path, recorder):
    def val_batches():
        for number in range(1000):
            if number == 2 and trainer.state.step == 4:
                signal.raise_signal(signal.SIGINT)
            seen.append(number)
            yield trainer.batches(number)

    seen = []
    trainer = make_trainer(
        run_dir=tmp_path, hooks=[recorder], val_batches=val_batches, eval_batches=5
    )
    result = trainer.fit()
    assert result.interrupted
    assert result.step == 4
    assert [e.step for e in recorder.evaluations] == [0]
    assert len(seen) == 5 + 3


def test_training_in_another_thread_leaves_signals_alone(make_trainer):
    before, results = signal.getsignal(signal.SIGINT), []
    thread = threading.Thread(target=lambda: results.append(make_trainer(steps=2).fit()))
    thread.start()
    thread.join()
    assert results[0].step == 2
    assert signal.getsignal(signal.SIGINT) is before


# ── the rest ─────────────────────────────────────────────────────────────────────────────────────


def test_overfitting_one_batch_uses_the_first_only(make_trainer, recorder):
    asked, base = [], TokenBatches(list(range(13)) * 20, 4, 8, seed=0)

    def batches(index):
        asked.append(index)
        return base(index)

    trainer = make_trainer(
        batches=batches,
        overfit_one_batch=True,
        grad_accumulation=2,
        steps=60,
        learning_rate=2e-2,
        hooks=[recorder],
    )
    result = trainer.fit()
    assert set(asked) == {0, 1}
    assert recorder.evaluations == []
    assert result.loss < 0.3 * recorder.losses[0]


def test_only_trainable_parameters_get_state_and_are_saved(make_trainer, tiny_model, tmp_path):
    """What LoRA needs: a frozen base, a small optimizer, a small checkpoint."""
    model = tiny_model()
    model.requires_grad_(False)
    model.blocks[0].attention.q_proj.weight.requires_grad_(True)
    before = copy.deepcopy(model)
    trainer = make_trainer(model=model, run_dir=tmp_path)
    trainer.fit()
    assert len(trainer.take_step.optimizer.state) == 1
    changed = [
        name
        for (name, old), new in zip(before.named_parameters(), model.parameters(), strict=True)
        if not torch.equal(old, new)
    ]
    assert changed == ["blocks.0.attention.q_proj.weight"]
    saved = tmp_path / "step-000012"
    assert (saved / "trainable.safetensors").stat().st_size < 1500
    assert not (saved / "model.safetensors").exists()


def test_speed_counts_training_only(make_trainer):
    class Slow(Hook):
        def on_evaluate(self, trainer, report):
            time.sleep(0.2)

    result = make_trainer(steps=4, eval_every=1, hooks=[Slow()]).fit()
    assert result.seconds > 1.0
    assert result.tokens_per_second > 4 * 32 / (result.seconds - 0.9)


def test_a_batch_size_that_the_batches_do_not_have_is_refused(make_trainer):
    with pytest.raises(ValueError, match=r"batch_size is 32, but batches\(0\) has 4 rows"):
        make_trainer(batch_size=32).fit()
    assert make_trainer(batch_size=4, steps=1).fit().step == 1


def test_a_tokenizer_larger_than_the_vocabulary_is_refused_before_training(make_trainer, recorder):
    tokenizer = Tokenizer.characters(["abcdefghijklmnop"])
    with pytest.raises(ValueError, match="tokenizer has 17 tokens, .* vocab_size is 13"):
        make_trainer(tokenizer=tokenizer, hooks=[recorder]).fit()
    assert recorder.steps == []


def test_a_full_disk_is_foreseen(make_trainer, tmp_path, recorder, monkeypatch):
    import shutil

    usage = shutil.disk_usage(tmp_path)._replace(free=10_000)
    monkeypatch.setattr("training.preflight.shutil.disk_usage", lambda path: usage)
    make_trainer(run_dir=tmp_path, hooks=[recorder], steps=1).fit()
    assert any("0.00 GB free" in warning for warning in recorder.warnings)


def test_a_plain_module_trains_without_any_gpt(tmp_path):
    def loss_fn(model, x):
        return (model(x) - x.sum(1, keepdim=True)).square().sum(), len(x)

    def batches(index):
        return torch.randn(16, 3, generator=torch.Generator().manual_seed(index))

    config = TrainConfig(steps=60, learning_rate=0.1, eval_every=30, device="cpu", weight_decay=0.0)
    trainer = Trainer(
        nn.Linear(3, 1),
        batches,
        loss_fn,
        config,
        run_dir=tmp_path,
        val_batches=lambda: [batches(10**6)],
    )
    result = trainer.fit()
    assert result.val_loss < 1e-2
    assert (tmp_path / "step-000060" / "model.safetensors").is_file()


def test_a_trainer_that_has_trained_is_not_started_again_by_mistake(make_trainer, tmp_path):
    trainer = make_trainer(run_dir=tmp_path, steps=4)
    trainer.fit()
    with pytest.raises(ValueError, match="already taken 4 steps"):
        trainer.fit()


def test_resume_needs_a_directory(make_trainer):
    with pytest.raises(ValueError, match="resume needs a run_dir"):
        make_trainer().fit(resume=True)
