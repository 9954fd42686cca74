import pytest
import torch

from training.hook_base import Hook, HookList, bits_per_byte
from training.hooks import (
    GradientNormHook,
    MetricsHook,
    ProgressHook,
    SampleHook,
    TrackingHook,
    standard_hooks,
)


def test_bits_per_byte():
    assert bits_per_byte(0.6931471805599453, 1.0) == pytest.approx(1.0)
    assert bits_per_byte(2.0, 4.0) == pytest.approx(2.0 / 0.6931471805599453 / 4)
    assert bits_per_byte(2.0, None) is None


def test_every_event_of_the_base_class_does_nothing():
    events = [name for name, value in vars(Hook).items() if callable(value)]
    assert {"on_start", "on_step", "on_evaluate", "on_save", "on_warning", "on_end"} <= set(events)
    for name in events:
        arguments = (None,) if name == "on_start" else (None, None)
        assert getattr(Hook(), name)(*arguments) is None


def test_warnings_before_the_start_are_told_after_it(recorder):
    hooks = HookList(None, [recorder])
    hooks.warn("early")
    assert recorder.warnings == []
    hooks.start()
    hooks.warn("late")
    assert recorder.events == ["start"]
    assert recorder.warnings == ["early", "late"]


def test_a_warning_that_only_a_file_hears_is_also_said(make_trainer, tmp_path, recorder):
    trainer = make_trainer(hooks=[MetricsHook()], run_dir=tmp_path, steps=1)
    trainer.fit()
    with pytest.warns(UserWarning, match="look here"):
        trainer.warn("look here")
    trainer.hooks.hooks.append(recorder)
    trainer.warn("and here")  # an error if it were a Python warning, too
    assert recorder.warnings == ["and here"]


def test_samples_come_with_the_evaluations_or_every_so_many_steps(make_trainer, recorder):
    texts = iter(range(100))
    hook = SampleHook(lambda model: f"text {next(texts)}")
    make_trainer(hooks=[recorder, hook]).fit()
    assert [m.splitlines()[:2] for m in recorder.messages] == [
        [f"--- sample at step {step} ---", f"text {number}"]
        for number, step in enumerate((0, 4, 8, 12))
    ]
    recorder.messages.clear()
    make_trainer(hooks=[recorder, SampleHook(lambda model: "x", every=5)]).fit()
    assert [m.split(" ---")[0] for m in recorder.messages] == [
        *("--- sample at step 5", "--- sample at step 10"),
    ]


def test_sampling_changes_no_weight_and_is_done_without_dropout(
    make_trainer, tiny_model, same_weights
):
    seen = []

    def write(model):
        seen.append((model.training, torch.is_grad_enabled()))
        torch.rand(17)
        return "x"

    models = tiny_model(), tiny_model()
    make_trainer(model=models[0]).fit()
    make_trainer(model=models[1], hooks=[SampleHook(write, every=1)]).fit()
    assert set(seen) == {(False, False)}
    assert same_weights(*models)
    assert models[1].training


def test_a_failing_sample_leaves_the_model_in_training_mode(make_trainer):
    def write(model):
        raise RuntimeError("no")

    trainer = make_trainer(hooks=[SampleHook(write, every=1)])
    with pytest.raises(RuntimeError, match="no"):
        trainer.fit()
    assert trainer.model.training


def test_gradient_tables_come_on_time_and_for_bad_steps(make_trainer, recorder):
    from training.accumulation import language_model_loss

    def loss_fn(model, batch):
        loss, count = language_model_loss(model, batch)
        bad = model.training and trainer.state.step == 6
        return loss * (float("nan") if bad else 1.0), count

    trainer = make_trainer(hooks=[recorder, GradientNormHook(every=5)], loss_fn=loss_fn)
    trainer.fit()
    heads = [message.splitlines()[0] for message in recorder.messages]
    assert [head.split("step ")[1].split()[0] for head in heads] == ["5", "7", "10"]
    assert "blocks.0.attention" in recorder.messages[0]
    assert "not finite" in recorder.messages[1]
    assert "not finite" not in recorder.messages[2]


@pytest.mark.parametrize("hook", [MetricsHook(), TrackingHook([])])
def test_hooks_that_write_need_a_place(make_trainer, hook):
    with pytest.raises(ValueError, match="needs a .*, or a Trainer with a run_dir"):
        make_trainer(hooks=[hook]).fit()


def test_the_standard_hooks(make_trainer, tmp_path, capsys):
    make_trainer(hooks=standard_hooks(), run_dir=tmp_path).fit()
    assert {path.name for path in tmp_path.iterdir()} >= {"metrics.jsonl", "loss.png"}
    assert "validation loss" in capsys.readouterr().out
    make_trainer(hooks=standard_hooks(saved=False)).fit()
    assert [type(hook) for hook in standard_hooks(saved=False)][0] is ProgressHook


@pytest.mark.parametrize("make", [lambda: SampleHook(str, every=0), lambda: GradientNormHook(0)])
def test_an_interval_is_at_least_one(make):
    with pytest.raises(ValueError, match="every must be an integer >= 1, got 0"):
        make()
