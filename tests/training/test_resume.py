import random
import signal

import numpy as np
import pytest
import torch

from tokenization.tokenizer import Tokenizer
from training.accumulation import language_model_loss
from training.checkpoint import list_checkpoints
from training.dataset import TokenBatches
from training.hook_base import Hook
from training.run_description import describe_environment
from training.run_directory import RunDirectory

TOKENS = [(step * step + step) % 13 for step in range(600)]


class Interrupt(Hook):
    def __init__(self, after):
        self.after = after

    def on_step(self, trainer, report):
        if report.step == self.after:
            signal.raise_signal(signal.SIGINT)


@pytest.fixture
def pause_and_resume(make_trainer, new_recorder, tmp_path):
    """Train straight, then with stops after the given steps; return both trainers and losses."""

    def run(*stops, **settings):
        straight, heard = make_trainer(hooks=[whole := new_recorder()], **settings), []
        straight.fit()
        for number, stop in enumerate([*stops, None]):
            part = new_recorder()
            hooks = [part] if stop is None else [part, Interrupt(stop)]
            trainer = make_trainer(run_dir=tmp_path / "run", hooks=hooks, **settings)
            random.seed(number)
            torch.manual_seed(1000 + number)  # the process began elsewhere
            result = trainer.fit(resume=number > 0)
            assert result.interrupted == (stop is not None)
            heard.append(part)
        return straight, whole, trainer, heard

    return run


@pytest.mark.parametrize(
    ("stops", "settings"),
    [
        ((5,), {}),
        ((1,), {}),
        ((4,), {}),  # on an evaluation's step: it must still be made, once
        ((11,), {}),
        ((2, 3, 7, 8), {}),
        ((5,), {"grad_accumulation": 3}),
        ((7,), {"schedule": "wsd", "eval_every": 100, "save_every": 3}),
        ((6,), {"precision": "bf16"}),
        ((5,), {"optimizer": "muon", "muon_learning_rate": 0.02}),
        ((5,), {"patience": 2, "learning_rate": 0.5}),
    ],
)
def test_a_resumed_run_is_the_uninterrupted_run(
    pause_and_resume, same_weights, same_optimizer, stops, settings
):
    straight, whole, resumed, parts = pause_and_resume(*stops, **settings)
    assert [loss for part in parts for loss in part.losses] == whole.losses
    assert [e.loss for part in parts for e in part.evaluations] == [
        e.loss for e in whole.evaluations
    ]
    assert same_weights(straight.model, resumed.model)
    assert same_optimizer(straight.take_step.optimizer, resumed.take_step.optimizer)
    for name in ("step", "tokens_seen", "best_loss", "best_step", "evaluations_without_gain"):
        assert getattr(resumed.state, name) == getattr(straight.state, name), name
    assert torch.equal(straight_random(straight), straight_random(resumed))


def straight_random(trainer):
    """The logits in training mode: dropout included."""
    torch.manual_seed(0)
    return trainer.model.train()(torch.arange(8)[None] % 13).logits


def test_python_random_numbers_are_continued_too(pause_and_resume, same_weights):
    def noisy_loss(model, batch):
        loss, count = language_model_loss(model, batch)
        return loss * (0.5 + random.random()), count

    straight, whole, resumed, parts = pause_and_resume(5, loss_fn=noisy_loss)
    assert [loss for part in parts for loss in part.losses] == whole.losses
    assert same_weights(straight.model, resumed.model)


def test_skipped_steps_in_a_row_are_not_forgotten(make_trainer, tmp_path, recorder):
    def broken_from(step):
        def loss_fn(model, batch):
            loss, count = language_model_loss(model, batch)
            bad = model.training and trainer.state.step >= step
            return loss * (float("nan") if bad else 1.0), count

        return loss_fn

    trainer = make_trainer(
        run_dir=tmp_path,
        loss_fn=broken_from(3),
        max_skipped_steps=3,
        hooks=[recorder, Interrupt(5)],
    )
    trainer.fit()
    assert trainer.state.skipped_in_a_row == 2
    trainer = make_trainer(run_dir=tmp_path, loss_fn=broken_from(3), max_skipped_steps=3)
    with pytest.warns(UserWarning, match="3 in a row"):
        with pytest.raises(ValueError, match="stopped at step 6: 3 steps"):
            trainer.fit(resume=True)


def test_the_loss_scale_is_continued(make_trainer, tmp_path):
    def make(**options):
        trainer = make_trainer(run_dir=tmp_path, **options)
        trainer.take_step.scaler.enabled, trainer.take_step.scaler.scale = True, 2.0**10
        return trainer

    first = make(hooks=[Interrupt(5)])
    first.fit()
    assert first.take_step.scaler.good_steps == 5
    second = make(hooks=[Interrupt(7)])
    second.fit(resume=True)
    assert (second.take_step.scaler.scale, second.take_step.scaler.good_steps) == (2.0**10, 7)


def test_a_finished_run_resumes_into_nothing(make_trainer, tmp_path, recorder):
    first = make_trainer(run_dir=tmp_path).fit()
    again = make_trainer(run_dir=tmp_path, hooks=[recorder]).fit(resume=True)
    assert recorder.losses == []
    assert recorder.saved == []
    assert (again.step, again.val_loss, again.best_loss) == (12, first.val_loss, first.best_loss)
    assert again.total_seconds > again.seconds > 0


def test_a_run_that_stopped_early_stays_stopped(make_trainer, tmp_path, recorder):
    settings = {"patience": 1, "learning_rate": 1.0, "warmup_steps": 0, "steps": 60}
    first = make_trainer(run_dir=tmp_path, **settings).fit()
    assert first.stopped_early
    again = make_trainer(run_dir=tmp_path, hooks=[recorder], **settings).fit(resume=True)
    assert again.stopped_early
    assert again.step == first.step
    assert recorder.losses == []


def test_an_unclean_end_resumes_from_the_last_checkpoint(
    make_trainer, tmp_path, new_recorder, same_weights
):
    class Crash(Hook):
        def on_step(self, trainer, report):
            if report.step == 7:
                raise RuntimeError("power cut")

    straight = make_trainer(hooks=[whole := new_recorder()])
    straight.fit()
    with pytest.raises(RuntimeError, match="power cut"):
        make_trainer(run_dir=tmp_path, hooks=[Crash()]).fit()
    resumed = make_trainer(run_dir=tmp_path, hooks=[part := new_recorder()])
    resumed.fit(resume=True)
    assert part.losses == whole.losses[4:]
    assert same_weights(straight.model, resumed.model)


# ── what differs ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def stopped(make_trainer, tmp_path):
    make_trainer(run_dir=tmp_path, hooks=[Interrupt(5)]).fit()
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 1e-3}, "config.learning_rate: 0.005 in the checkpoint, 0.001 now"),
        ({"steps": 20}, "config.steps: 12 in the checkpoint, 20 now"),
        ({"grad_accumulation": 2}, "config.grad_accumulation: 1 in the checkpoint, 2 now"),
        ({"weight_decay": 0.0}, "config.weight_decay: 0.1 in the checkpoint, 0.0 now"),
        ({"betas": (0.9, 0.99)}, r"config.betas: \[0.9, 0.95\] in .*, \[0.9, 0.99\] now"),
        ({"grad_clip": None}, "config.grad_clip: 1.0 in the checkpoint, None now"),
        ({"precision": "bf16"}, "config.precision: 'fp32' in the checkpoint, 'bf16' now"),
        ({"schedule": "constant"}, "config.schedule: 'cosine' in the checkpoint, 'constant' now"),
        ({"overfit_one_batch": True}, "config.overfit_one_batch: False in the checkpoint"),
        ({"batches": TokenBatches(TOKENS[:500], 4, 8, seed=7)}, "data.batch: '.*' in the"),
        ({"batches": TokenBatches(TOKENS[1:501], 4, 8, seed=0)}, "data.batch: '.*' in the"),
        ({"batches": TokenBatches(TOKENS[:500], 5, 8, seed=0)}, "data.batch: '.*' in the"),
        ({"tokenizer": Tokenizer.characters(["abc"])}, "tokenizer.fingerprint: None in"),
    ],
)
def test_a_change_of_arithmetic_or_data_is_refused_by_name(
    make_trainer, stopped, changes, message, recorder
):
    with pytest.raises(ValueError, match=message) as caught:
        make_trainer(run_dir=stopped, hooks=[recorder], **changes).fit(resume=True)
    assert "allow_changes" in str(caught.value)
    assert recorder.losses == []


def test_a_change_of_the_model_that_keeps_the_shapes_is_refused(make_trainer, tiny_model, stopped):
    model = tiny_model(dropout=0.2)
    with pytest.raises(ValueError, match="model.dropout: 0.1 in the checkpoint, 0.2 now"):
        make_trainer(run_dir=stopped, model=model).fit(resume=True)


def test_a_corpus_that_changed_where_no_batch_has_looked_is_noticed(make_trainer, tmp_path):
    """Same length, same window in the last batch: only the shard's own hash tells."""

    class Corpus:
        document_starts = [0]

        def __init__(self, fingerprint):
            self.tokens, self.fingerprint = np.array(TOKENS[:500]), fingerprint

        def check_intact(self):
            pass

    def batches(fingerprint):
        return TokenBatches(Corpus(fingerprint), 4, 8, seed=0)

    make_trainer(run_dir=tmp_path, hooks=[Interrupt(5)], batches=batches("a" * 64)).fit()
    with pytest.raises(ValueError, match="data.corpus: 'aaaaaaaaaaaa…' in .* 'bbbbbbbbbbbb…' now"):
        make_trainer(run_dir=tmp_path, batches=batches("b" * 64)).fit(resume=True)
    make_trainer(run_dir=tmp_path, batches=batches("a" * 64)).fit(resume=True)


def test_changes_may_be_allowed_and_are_said(make_trainer, stopped, recorder):
    trainer = make_trainer(run_dir=stopped, hooks=[recorder], steps=20, learning_rate=1e-3)
    assert trainer.fit(resume=True, allow_changes=True).step == 20
    assert len(recorder.losses) == 15
    assert any("config.steps: 12 in the checkpoint, 20 now" in w for w in recorder.warnings)
    assert any("config.learning_rate" in w for w in recorder.warnings)


def test_another_machine_only_warns(make_trainer, stopped, recorder, monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.setattr("training.run_description.torch.get_num_threads", lambda: threads + 7)
    monkeypatch.setattr("training.run_description.platform.python_version", lambda: "3.99.0")
    make_trainer(run_dir=stopped, hooks=[recorder]).fit(resume=True)
    assert any(f"environment.threads: {threads} in" in w for w in recorder.warnings)
    assert any("environment.python" in w and "'3.99.0' now" in w for w in recorder.warnings)
    assert {"device", "threads", "torch"} <= set(describe_environment(torch.device("cpu")))


def test_how_often_we_look_may_change(make_trainer, stopped, recorder):
    changes = {"eval_every": 3, "save_every": 2, "keep_last": 4, "patience": 50, "eval_batches": 1}
    make_trainer(run_dir=stopped, hooks=[recorder], **changes).fit(resume=True)
    assert recorder.warnings == []
    assert recorder.saved[0] == "step-000006"


# ── the directory ────────────────────────────────────────────────────────────────────────────────


def test_resuming_an_empty_directory_is_refused(make_trainer, tmp_path, recorder):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="cannot resume: .*empty holds no checkpoint"):
        make_trainer(run_dir=empty, hooks=[recorder]).fit(resume=True)
    with pytest.raises(ValueError, match="run directory .*nowhere does not exist"):
        make_trainer(run_dir=tmp_path / "nowhere").fit(resume=True)
    assert not (tmp_path / "nowhere").exists()
    assert recorder.events == []


def test_starting_afresh_over_checkpoints_is_refused_unless_said(make_trainer, stopped, recorder):
    with pytest.raises(ValueError, match="already holds checkpoints, the latest is step-000005"):
        make_trainer(run_dir=stopped).fit()
    assert [c.step for c in list_checkpoints(stopped)][-1] == 5
    make_trainer(run_dir=stopped, hooks=[recorder]).fit(overwrite=True)
    assert len(recorder.losses) == 12
    assert 5 not in [c.step for c in list_checkpoints(stopped)]
    with pytest.raises(ValueError, match="resume and overwrite contradict"):
        make_trainer(run_dir=stopped).fit(resume=True, overwrite=True)


def test_two_runs_in_one_directory_are_refused_with_a_name(make_trainer, tmp_path, recorder):
    import os

    with RunDirectory(tmp_path).claimed(), pytest.raises(ValueError, match="in use") as caught:
        make_trainer(run_dir=tmp_path, hooks=[recorder]).fit()
    assert f"process {os.getpid()} on" in str(caught.value)
    assert recorder.events == []
    assert make_trainer(run_dir=tmp_path).fit().step == 12


def test_a_place_that_cannot_be_written_fails_at_step_0(make_trainer, tmp_path, recorder):
    file = tmp_path / "file"
    file.write_text("", encoding="utf-8")
    for place in (file, file / "below"):
        with pytest.raises(ValueError, match=f"run directory .*{place.name} cannot be written to"):
            make_trainer(run_dir=place, hooks=[recorder]).fit()
    assert recorder.events == []


def test_leftovers_of_a_killed_save_are_swept(make_trainer, tmp_path):
    (tmp_path / "step-000004.tmp-deadbeef").mkdir()
    (tmp_path / "step-000004.tmp-deadbeef" / "model.safetensors").write_bytes(b"half")
    make_trainer(run_dir=tmp_path).fit()
    assert [path.name for path in tmp_path.glob("*.tmp-*")] == []


def test_all_damaged_is_an_error_and_not_a_fresh_start(make_trainer, stopped, recorder):
    for checkpoint in list_checkpoints(stopped):
        (checkpoint.directory / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="every checkpoint in .* is damaged.*config.json"):
        make_trainer(run_dir=stopped, hooks=[recorder]).fit(resume=True)
    assert recorder.losses == []
