"""Loss spikes: found, not imagined, the same after a resume, and no NaN blinds the watch."""

import math
import random
import statistics

import numpy as np
import pytest
import torch

from tokenization.tokenizer import Tokenizer
from training.accumulation import language_model_loss
from training.data_check import show_windows
from training.dataset import TokenBatches
from training.divergence import TrainingDivergedError
from training.metrics import MetricsHook, read_metrics
from training.spike_watch import RobustWindow, SpikeWatch

# the tiny model's gradients are calm enough to be told from a spike after eight steps
WATCHED = {"spike_window": 8, "spike_factor": 20.0, "steps": 30, "grad_accumulation": 2}


def noisy(seed, level, n, share=0.1):
    numbers = random.Random(seed)
    return [level * (1 + share * numbers.gauss(0, 1)) for _ in range(n)]


def loud(trainer_of, steps, factor=1000.0):
    """The loss of some steps counts a thousandfold: finite, but far from the usual."""

    def loss_fn(model, batch):
        loss, count = language_model_loss(model, batch)
        return (loss * factor if trainer_of().state.step in steps else loss), count

    return loss_fn


# ── the window ──────────────────────────────────────────────────────────────────────


def test_the_limit_is_median_and_scaled_mad():
    window = RobustWindow(9, 3.0)
    numbers = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0]
    for number in numbers[:-1]:
        window.add(number)
    assert window.median_and_limit() is None  # not full yet
    window.add(numbers[-1])
    median = statistics.median(numbers)
    mad = statistics.median(abs(number - median) for number in numbers)
    assert window.median_and_limit() == (16.0, pytest.approx(median + 3.0 * 1.4826 * mad))


def test_the_scale_never_sinks_below_a_share_of_the_median():
    window = RobustWindow(8, 10.0)
    for _ in range(8):
        window.add(2.0)
    assert window.median_and_limit() == (2.0, pytest.approx(2.0 + 10 * 0.05 * 2.0))


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_nothing_non_finite_gets_in(poison):
    clean, dirty = RobustWindow(16, 10.0), RobustWindow(16, 10.0)
    for number in noisy(0, 1.0, 40):
        clean.add(number)
        dirty.add(number)
        dirty.add(poison)
    assert dirty.values == clean.values
    assert dirty.median_and_limit() == clean.median_and_limit()


def test_an_outlier_that_was_accepted_does_not_blind_it():
    watch = SpikeWatch("log", 10.0, 32)
    for number in noisy(1, 1.0, 32):
        watch.update(3.0, number)
    for value in (1e30, 9.0, 1e30, 9.0):
        (spike,) = watch.update(3.0, value)
        assert (spike.what, spike.value) == ("gradient norm", value)
        assert spike.limit < 3.0


@pytest.mark.parametrize("seed", range(5))
def test_noise_and_drift_are_not_spikes_and_a_jump_is(seed):
    watch = SpikeWatch("log", 10.0, 64)
    levels = [2.0 + step / 100 for step in range(1000)]  # from 2 to 12, slowly
    factors = noisy(seed, 1.0, 1000)
    for step, (level, factor) in enumerate(zip(levels, factors, strict=True)):
        assert watch.update(level * factor, 14.0 - level) == (), step
    (spike,) = watch.update(12.0, 12.0)  # the gradient had gone down to 2
    assert spike.what == "gradient norm"
    spikes = watch.update(60.0, 12.0)
    assert [spike.what for spike in spikes] == ["loss", "gradient norm"]


def test_a_fall_is_no_spike_and_off_keeps_nothing():
    watch = SpikeWatch("log", 10.0, 8)
    for number in noisy(2, 5.0, 8):
        watch.update(number, number)
    assert watch.update(0.001, 0.001) == ()
    off = SpikeWatch("off", 10.0, 8)
    for number in [*noisy(2, 5.0, 8), 1e9]:
        assert off.update(number, number) == ()
    assert off.state_dict() == {"loss": [], "gradient norm": []}


def test_skipped_values_are_not_what_is_usual_and_logged_ones_become_it():
    usual = noisy(3, 1.0, 16)
    log, skip = SpikeWatch("log", 10.0, 16), SpikeWatch("skip", 10.0, 16)
    for watch in (log, skip):
        for number in usual:
            watch.update(1.0, number)
    told = {
        watch.action: sum(bool(watch.update(1.0, 9.0)) for _ in range(40)) for watch in (log, skip)
    }
    assert skip.state_dict()["gradient norm"] == usual
    assert told["skip"] == 40
    assert 4 <= told["log"] <= 9  # half a window later, the new level is the usual one


# ── in a training ───────────────────────────────────────────────────────────────────


def test_a_spike_is_logged_with_values_limit_and_windows(make_trainer, tmp_path, recorder):
    options = {"run_dir": tmp_path, "hooks": [MetricsHook(), recorder], **WATCHED}
    trainer = make_trainer(loss_fn=loud(lambda: trainer, {20}), **options)
    result = trainer.fit()
    (told,) = [message for message in recorder.warnings if "above" in message]
    assert told.startswith("step 21: the loss ")
    assert "the gradient norm" in told
    assert result.skipped_steps == 0
    assert trainer.state.spike_steps == 1
    records = read_metrics(tmp_path / "metrics.jsonl")
    (line,) = [record for record in records if "spikes" in record]
    assert line["step"] == 21
    loss, norm = line["spikes"]
    assert loss["value"] == line["loss"] > loss["limit"] > loss["median"]
    assert norm["value"] == line["grad_norm"] > norm["limit"] > norm["median"]
    used = [i for number in (40, 41) for i in trainer.batches(number).window_ids]
    assert line["window_ids"] == used
    assert all(str(i) in told for i in used)


def test_log_does_not_change_the_training(make_trainer, same_weights):
    def train(action):
        trainer = make_trainer(loss_fn=loud(lambda: trainer, {15}), spike_action=action, **WATCHED)
        trainer.fit()
        return trainer.model

    with pytest.warns(UserWarning, match="step 16: the loss"):
        logged = train("log")
    assert same_weights(logged, train("off"))


def test_skip_leaves_weights_and_moments_as_they_were(make_trainer, new_recorder):
    def look(trainer):
        state = trainer.take_step.optimizer.state_dict()["state"]
        tensors = [*trainer.model.parameters(), *(t for s in state.values() for t in s.values())]
        return [tensor.detach().clone() for tensor in tensors]

    class Watch(new_recorder):
        def on_step(self, trainer, report):
            super().on_step(trainer, report)
            now = look(trainer)
            if report.step > 1:
                same = all(map(torch.equal, now, self.before))
                assert same == report.skipped == (report.step == 21)
            self.before = now

    watch = Watch()
    options = {"hooks": [watch], "spike_action": "skip", **WATCHED}
    trainer = make_trainer(loss_fn=loud(lambda: trainer, {20}), **options)
    assert trainer.fit().skipped_steps == 1
    assert "step 21 skipped, weights untouched: the loss" in watch.warnings[0]
    assert watch.steps[20].window_ids


def test_skipping_without_end_stops(make_trainer, recorder):
    options = {"hooks": [recorder], "spike_action": "skip", "max_skipped_steps": 3, **WATCHED}
    trainer = make_trainer(loss_fn=loud(lambda: trainer, range(12, 99)), **options)
    with pytest.raises(TrainingDivergedError, match="at step 15: 3 .* left out as spikes"):
        trainer.fit()


@pytest.mark.parametrize("action", ["log", "skip"])
def test_the_same_spikes_after_a_resume(
    make_trainer, tmp_path, new_recorder, same_weights, same_optimizer, action
):
    """The run is cut off twice: before a spike, and between two in a row."""

    class Cut(new_recorder):
        def __init__(self, step):
            super().__init__()
            self.step = step

        def on_step(self, trainer, report):
            if report.step == self.step:
                raise RuntimeError("power cut")

    def make(name, *hooks):
        options = {"run_dir": tmp_path / name, "hooks": [MetricsHook(), *hooks], "save_every": 3}
        trainer = make_trainer(
            loss_fn=loud(lambda: trainer, {20, 21, 26}), spike_action=action, **options, **WATCHED
        )
        return trainer

    straight, listening = make("straight", whole := new_recorder()), new_recorder()
    straight.fit()
    for step in (20, 23):
        with pytest.raises(RuntimeError, match="power cut"):
            make("broken", new_recorder(), Cut(step)).fit(resume=step > 20)
    resumed = make("broken", listening)
    resumed.fit(resume=True)
    assert same_weights(straight.model, resumed.model)
    assert same_optimizer(straight.take_step.optimizer, resumed.take_step.optimizer)
    windows = [trainer.take_step.spikes.state_dict() for trainer in (straight, resumed)]
    assert windows[0] == windows[1]
    assert resumed.state.spike_steps == straight.state.spike_steps == 3
    records = [
        [{key: value for key, value in record.items() if key != "seconds"} for record in found]
        for found in (
            read_metrics(tmp_path / name / "metrics.jsonl") for name in ("straight", "broken")
        )
    ]
    assert records[0] == records[1]
    assert len(whole.warnings) == (
        2 if action == "log" else 3
    )  # in a row: told once, skipped twice


def test_a_spike_is_no_overflow(make_trainer):
    """fp16 halves its scale when a gradient overflows, not when a step is left out as a spike."""
    trainer = make_trainer(loss_fn=loud(lambda: trainer, {10}), spike_action="skip", **WATCHED)
    step = trainer.take_step
    step.scaler.enabled = True  # the scale of 1 is small enough for the tiny model
    reports = []
    for number in range(12):
        trainer.state.step = number
        reports.append(step(number))
    assert [report.skipped for report in reports] == [n == 10 for n in range(12)]
    assert step.scaler.scale == 1.0
    trainer.state.after_step(reports[10], counts_as_fault=False)
    assert trainer.state.skipped_in_a_row == 1


def test_another_limit_is_another_run_only_when_it_skips(make_trainer, tmp_path, recorder):
    make_trainer(run_dir=tmp_path, steps=12, save_every=4).fit()
    # a checkpoint from the middle, as a power cut leaves it
    for action, refused in (("log", False), ("skip", True)):
        again = make_trainer(
            run_dir=tmp_path, steps=12, save_every=4, spike_action=action, spike_factor=7.0
        )
        if refused:
            with pytest.raises(
                ValueError, match=r"skip_spikes: None in the checkpoint, \[7.0, 64\]"
            ):
                again.fit(resume=True)
        else:
            again.fit(resume=True)


# ── looking at the windows ──────────────────────────────────────────────────────────


def test_windows_are_shown_as_the_model_saw_them(tiny_model):
    text = (
        "the quick brown fox jumps over the lazy dog. " * 4 + "\x00" * 40 + "and so on and on. " * 4
    )
    tokenizer = Tokenizer.characters([text])
    ids = np.array(tokenizer.encode(text))
    batches = TokenBatches(ids, 3, 8, seed=0)
    batch = batches(5)
    shown = show_windows(ids, batch.window_ids, tokenizer, block_size=8).splitlines()
    assert shown[0::2] == [f"window {start}" for start in batch.window_ids]
    assert shown[1::2] == [f"  {tokenizer.decode(row.tolist())!r}" for row in batch.inputs]


def test_with_a_model_the_worst_window_comes_first(tiny_model):
    model = tiny_model(vocab_size=4).train()
    tokenizer = Tokenizer.characters(["abcd"], special_tokens=())
    ids = np.array(tokenizer.encode("abcd" * 30))
    bad = ids.copy()
    bad[40:49] = tokenizer.encode("d")[0]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):  # it learns the alphabet
        optimizer.zero_grad()
        rows = torch.tensor(ids[: 8 * 14].reshape(8, 14))
        model(rows[:, :8], rows[:, 1:9]).loss.backward()
        optimizer.step()
    before = torch.get_rng_state()
    shown = show_windows(bad, [0, 40, 80], tokenizer, block_size=8, model=model)
    assert shown.startswith("window 40, loss ")
    assert "'dddddddd'" in shown.splitlines()[1]
    assert model.training
    assert torch.equal(before, torch.get_rng_state())


def test_a_window_of_another_corpus_is_refused(tiny_model):
    tokenizer = Tokenizer.characters(["abcd"])
    with pytest.raises(ValueError, match="window 90 is outside the corpus of 30 tokens"):
        show_windows(np.zeros(30, dtype=np.int64), [3, 90], tokenizer, block_size=8)
