"""NaN and infinity never reach the weights, nor the disk."""

import copy
import math
import random

import pytest
import torch

from training.accumulation import language_model_loss
from training.checkpoint import list_checkpoints, load_weights
from training.divergence import TrainingDivergedError


def poison(trainer_of, bad_steps, where):
    """A loss that is bad in the given steps: its value, or a single number of its gradient."""

    def loss_fn(model, batch):
        loss, count = language_model_loss(model, batch)
        if model.training and trainer_of().state.step in bad_steps:
            if where == "loss":
                return loss + math.inf, count
            weight = model.blocks[0].feed_forward.up_proj.weight
            return loss + (weight[3, 2] * 0.0).sqrt(), count  # its gradient is NaN or infinite
        return loss, count

    return loss_fn


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_poisoned_steps_leave_weights_and_moments_as_they_were(tmp_path, faults, where):
    numbers = random.Random(3)
    bad = set(numbers.sample(range(2, 28), 6))
    states = []

    class Watch(faults.Hook):
        def __init__(self):
            self.skipped = {}

        def on_start(self, trainer):
            self.before = self.look(trainer)

        def on_step(self, trainer, report):
            now = self.look(trainer)
            assert report.skipped == (report.step - 1 in bad)
            assert report.skipped == (now == self.before)
            assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
            if report.skipped:
                self.skipped[report.step] = report.window_ids
            self.before = now

        def look(self, trainer):
            state = trainer.take_step.optimizer.state_dict()["state"]
            moments = [t.numpy().tobytes() for s in state.values() for t in s.values()]
            return [p.detach().numpy().tobytes() for p in trainer.model.parameters()], moments

        def on_warning(self, trainer, message):
            states.append(message)

    watch = Watch()
    trainer = faults.make_run(
        tmp_path / "run",
        loss_fn=poison(lambda: trainer, bad, where),
        hooks=[watch],
        max_skipped_steps=6,
    )
    result = trainer.fit()
    assert result.skipped_steps == 6
    assert set(watch.skipped) == {step + 1 for step in bad}
    for step, windows in watch.skipped.items():
        used = [i for a in (2 * step - 2, 2 * step - 1) for i in trainer.batches(a).window_ids]
        assert list(windows) == used
    assert sum("skipped" in message for message in states) == 6


def test_the_skipped_step_is_the_same_after_a_resume(tmp_path, faults):
    """A step that was skipped before the checkpoint counts, one after it is met again."""

    class PowerCut(faults.Hook):
        def on_step(self, trainer, report):
            if report.step == 8:
                raise RuntimeError("power cut")

    def make(name, *hooks):
        trainer = faults.make_run(
            tmp_path / name,
            loss_fn=poison(lambda: trainer, {4, 9}, "loss"),
            hooks=hooks,
            max_skipped_steps=6,
        )
        return trainer

    straight = make("straight")
    with pytest.warns(UserWarning, match="step 5 skipped"):
        straight.fit()
    with pytest.warns(UserWarning, match="step 5 skipped"):
        with pytest.raises(RuntimeError, match="power cut"):
            make("broken", PowerCut()).fit()
    resumed = make("broken")
    with pytest.warns(UserWarning, match="step 10 skipped"):
        resumed.fit(resume=True)
    assert faults.digest(resumed) == faults.digest(straight)
    assert resumed.state.skipped_steps == straight.state.skipped_steps == 2


def test_a_run_that_only_meets_nan_stops_and_its_last_checkpoint_is_good(tmp_path, faults):
    trainer = faults.make_run(
        tmp_path / "run",
        loss_fn=poison(lambda: trainer, set(range(10, 99)), "gradient"),
        max_skipped_steps=4,
    )
    with pytest.warns(UserWarning, match="4 in a row"):
        with pytest.raises(TrainingDivergedError, match="at step 14: 4"):
            trainer.fit()
    newest = list_checkpoints(tmp_path / "run")[-1]
    assert newest.step == 12
    model = copy.deepcopy(trainer.model)
    load_weights(newest.directory, model)
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_weights_that_went_bad_are_not_saved(tmp_path, faults):
    class Sabotage(faults.Hook):
        def on_step(self, trainer, report):
            if report.step == 5:
                with torch.no_grad():
                    trainer.model.final_norm.weight[0] = math.nan

    trainer = faults.make_run(tmp_path / "run", hooks=[Sabotage()], max_skipped_steps=50)
    with pytest.raises(ValueError, match="holds NaN or infinite values; step-000006 is not saved"):
        trainer.fit()
    assert [c.step for c in list_checkpoints(tmp_path / "run")] == [3]


def test_a_learning_rate_that_blows_up_ends_in_a_clear_error(tmp_path, faults):
    trainer = faults.make_run(
        tmp_path / "run", learning_rate=1e36, warmup_steps=0, weight_decay=0.0, grad_clip=None
    )
    with pytest.warns(UserWarning, match="skipped"):
        with pytest.raises(ValueError, match="NaN or infinite values"):
            trainer.fit()
