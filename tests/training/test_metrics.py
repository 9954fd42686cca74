import json

import pytest

from training.accumulation import language_model_loss
from training.hook_base import Hook
from training.metrics import MetricsHook, read_metrics


class Crash(Hook):
    def __init__(self, after):
        self.after = after

    def on_step(self, trainer, report):
        if report.step == self.after:
            raise RuntimeError("power cut")


def strip(records):
    """Without what the clock says."""
    return [{k: v for k, v in record.items() if k != "seconds"} for record in records]


def test_every_step_and_evaluation_has_its_line(make_trainer, recorder, tmp_path):
    trainer = make_trainer(hooks=[recorder, MetricsHook()], run_dir=tmp_path, bytes_per_token=2.0)
    trainer.fit()
    records = read_metrics(tmp_path / "metrics.jsonl")
    steps = [record for record in records if "loss" in record]
    assert [record["loss"] for record in steps] == recorder.losses
    assert [record["step"] for record in steps] == list(range(1, 13))
    assert [record["tokens"] for record in steps] == [32 * n for n in range(1, 13)]
    for record, report in zip(steps, recorder.steps, strict=True):
        assert (record["learning_rate"], record["grad_norm"]) == (
            report.learning_rate,
            report.grad_norm,
        )
    found = [(r["step"], r["val_loss"], r["bits_per_byte"]) for r in records if "val_loss" in r]
    assert found == [(e.step, e.loss, e.bits_per_byte) for e in recorder.evaluations]


def test_lines_are_there_while_training_goes_on(make_trainer, tmp_path):
    """A killed run leaves every finished step behind."""

    class Look(Hook):
        def on_step(self, trainer, report):
            lines = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            assert json.loads(lines[-1])["step"] == report.step

    make_trainer(hooks=[MetricsHook(), Look()], run_dir=tmp_path).fit()


def test_resuming_drops_what_came_after_the_checkpoint(make_trainer, tmp_path):
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    make_trainer(hooks=[MetricsHook()], run_dir=straight).fit()
    with pytest.raises(RuntimeError):
        make_trainer(hooks=[MetricsHook(), Crash(7)], run_dir=broken).fit()
    with open(broken / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 8, "lo')  # half a line
    assert read_metrics(broken / "metrics.jsonl")[-1]["step"] == 7
    make_trainer(hooks=[MetricsHook()], run_dir=broken).fit(resume=True)
    assert strip(read_metrics(broken / "metrics.jsonl")) == strip(
        read_metrics(straight / "metrics.jsonl")
    )


def test_a_fresh_start_begins_a_fresh_file(make_trainer, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 99, "loss": 1.0}\n', encoding="utf-8")
    make_trainer(hooks=[MetricsHook()], run_dir=tmp_path).fit()
    assert max(record["step"] for record in read_metrics(tmp_path / "metrics.jsonl")) == 12


def test_skipped_steps_and_warnings_are_recorded_as_valid_json(make_trainer, tmp_path):
    def loss_fn(model, batch):
        loss, count = language_model_loss(model, batch)
        bad = model.training and trainer.state.step == 3
        return loss * (float("nan") if bad else 1.0), count

    trainer = make_trainer(hooks=[MetricsHook()], run_dir=tmp_path, loss_fn=loss_fn)
    with pytest.warns(UserWarning, match="step 4 skipped"):
        trainer.fit()
    text = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8")
    assert "NaN" not in text
    skipped = [record for record in map(json.loads, text.splitlines()) if "skipped" in record]
    assert skipped == [
        {
            "step": 4,
            "skipped": "the loss is nan",
            "window_ids": list(trainer.batches(3).window_ids),
        }
    ]
    assert any("step 4 skipped" in r.get("warning", "") for r in map(json.loads, text.splitlines()))


def test_fewer_lines_on_request(make_trainer, tmp_path):
    make_trainer(hooks=[MetricsHook(tmp_path / "m.jsonl", every=5)], val_batches=None).fit()
    assert [record["step"] for record in read_metrics(tmp_path / "m.jsonl")] == [5, 10]
