"""NaN and infinity never reach the weights, nor the disk."""

import copy
import math
import random

import pytest
import torch
from safetensors.torch import load_file

from training.accumulation import language_model_loss
from training.checkpoint import list_checkpoints, load_weights
from training.divergence import TrainingDivergedError
from training.optimizer import OPTIMIZERS


class Broken(torch.autograd.Function):
    """Zero, with a gradient that is not finite."""

    @staticmethod
    def forward(ctx, x, gradient):
        ctx.gradient = gradient
        return torch.zeros_like(x)

    @staticmethod
    def backward(ctx, upstream):
        return torch.full_like(upstream, ctx.gradient), None


def poison(trainer_of, bad_steps, where):
    """A loss that is bad in the given steps: its value, or a single number of its gradient."""

    def loss_fn(model, batch):
        loss, count = language_model_loss(model, batch)
        if model.training and trainer_of().state.step in bad_steps:
            weight = first_matrix(model)
            if where == "loss":
                return loss + math.nan, count
            if where == "overflow":  # finite in the forward pass, too large in the backward pass
                return loss + ((weight[1, 1] + 1.0) * 1e-30).square().sqrt() * 1e30 * 1e38, count
            broken = math.nan if where == "nan gradient" else math.inf
            return loss + Broken.apply(weight[1, 1], broken), count
        return loss, count

    return loss_fn


KINDS = {
    **{f"optimizer-{name}": {"optimizer": name} for name in OPTIMIZERS},
    "bf16": {"precision": "bf16"},
    "fp16": {"kind": "fp16"},
    "lora": {"kind": "lora"},
}


def first_matrix(model):
    """A weight that is trained, whatever kind of run this is."""
    return next(p for p in model.parameters() if p.requires_grad and p.ndim == 2)


@pytest.mark.parametrize("where", ["loss", "nan gradient", "inf gradient", "overflow"])
@pytest.mark.parametrize("kind", KINDS)
def test_poisoned_steps_leave_weights_and_moments_as_they_were(tmp_path, faults, where, kind):
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
            # fp16 also skips steps while it looks for its scale
            assert report.skipped or report.step - 1 not in bad
            assert not report.skipped or report.step - 1 in bad or kind == "fp16"
            assert report.skipped == (now == self.before)
            assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
            state = trainer.take_step.optimizer.state_dict()["state"]
            assert all(torch.isfinite(t).all() for s in state.values() for t in s.values())
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
        **KINDS[kind],
    )
    result = trainer.fit()
    assert result.skipped_steps == len(watch.skipped) >= 6
    assert set(watch.skipped) >= {step + 1 for step in bad}
    if kind == "fp16":
        return  # its overflows are everyday business and not told
    for step, windows in watch.skipped.items():
        used = [i for a in (2 * step - 2, 2 * step - 1) for i in trainer.batches(a).window_ids]
        assert list(windows) == used
    assert sum("skipped" in message for message in states) == 6
    for checkpoint in list_checkpoints(tmp_path / "run"):
        for file in checkpoint.directory.glob("*.safetensors"):
            assert all(
                t.isfinite().all() for t in load_file(file).values() if t.is_floating_point()
            )


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
        loss_fn=poison(lambda: trainer, set(range(10, 99)), "inf gradient"),
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


def test_the_count_in_a_row_goes_on_after_a_resume(tmp_path, faults):
    """A checkpoint is saved between two bad steps: whoever resumes has had one of them already."""

    def make(name, *hooks):
        trainer = faults.make_run(
            tmp_path / name,
            loss_fn=poison(lambda: trainer, set(range(11, 99)), "loss"),
            hooks=hooks,
            max_skipped_steps=3,
        )
        return trainer

    class PowerCut(faults.Hook):
        def on_step(self, trainer, report):
            if report.step == 13:
                raise RuntimeError("power cut")

    with pytest.warns(UserWarning, match="1 in a row"), pytest.raises(RuntimeError, match="power"):
        make("run", PowerCut()).fit()
    assert list_checkpoints(tmp_path / "run")[-1].step == 12
    with pytest.warns(UserWarning, match="step 13 skipped.*2 in a row"):
        with pytest.raises(TrainingDivergedError, match="at step 14: 3"):
            make("run").fit(resume=True)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("what", ["weight", "optimizer state"])
@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_numbers_that_went_bad_are_not_saved(tmp_path, faults, name, what, value):
    """Whoever put them there: a hook, a broken memory. All before the checkpoint is kept."""

    class Sabotage(faults.Hook):
        def on_step(self, trainer, report):
            weight = trainer.model.blocks[0].attention.q_proj.weight
            state = trainer.take_step.optimizer.state[weight]
            moment = next(t for key, t in state.items() if t.shape == weight.shape)
            if report.step == 6:
                with torch.no_grad():
                    (weight if what == "weight" else moment).view(-1)[5] = value

    trainer = faults.make_run(tmp_path / "run", hooks=[Sabotage()], optimizer=name, eval_every=99)
    with pytest.raises(ValueError, match="holds NaN or infinite values; step-000006 is not saved"):
        trainer.fit()
    assert [c.step for c in list_checkpoints(tmp_path / "run")] == [3]
    assert not list((tmp_path / "run").glob("*.tmp-*"))


def test_a_learning_rate_that_blows_up_ends_in_a_clear_error(tmp_path, faults):
    trainer = faults.make_run(
        tmp_path / "run", learning_rate=1e36, warmup_steps=0, weight_decay=0.0, grad_clip=None
    )
    with pytest.warns(UserWarning, match="skipped"):
        with pytest.raises(ValueError, match="NaN or infinite values"):
            trainer.fit()
