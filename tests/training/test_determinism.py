"""The deterministic mode: global switches come and go, and two runs are equal to the bit."""

import os
import signal

import pytest
import torch

from training.determinism import WORKSPACE, deterministic_mode


def switches():
    cudnn = torch.backends.cudnn
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        cudnn.deterministic,
        cudnn.benchmark,
        os.environ.get(WORKSPACE),
    )


@pytest.fixture(params=[False, True], ids=["plain", "set before"])
def before(request, monkeypatch):
    """Two states of the process that must come back: the usual one, and its opposite."""
    cudnn = torch.backends.cudnn
    monkeypatch.delenv(WORKSPACE, raising=False)
    if request.param:
        monkeypatch.setenv(WORKSPACE, ":16:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        monkeypatch.setattr(cudnn, "benchmark", True)
    yield switches()
    torch.use_deterministic_algorithms(False)


def test_every_switch_is_turned_on_and_comes_back(before):
    with deterministic_mode(True):
        assert switches()[:4] == (True, False, True, False)
        assert os.environ[WORKSPACE] == (before[4] or ":4096:8")
        with deterministic_mode(True):
            pass
        assert switches()[:4] == (True, False, True, False)
    assert switches() == before


def test_they_come_back_after_an_error(before):
    with pytest.raises(KeyError):
        with deterministic_mode(True):
            raise KeyError
    assert switches() == before


def test_turned_off_it_touches_nothing(before):
    with deterministic_mode(False):
        assert switches() == before


def test_an_operation_without_a_deterministic_form_is_an_error():
    """max_unpool2d is one on CPUs too, so the promise can be tried without a GPU."""
    pooled, places = torch.nn.functional.max_pool2d(torch.rand(1, 1, 4, 4), 2, return_indices=True)
    torch.nn.functional.max_unpool2d(pooled, places, 2)
    with deterministic_mode(True), pytest.raises(RuntimeError, match="deterministic"):
        torch.nn.functional.max_unpool2d(pooled, places, 2)


def test_a_training_runs_inside_it_and_leaves_no_trace(make_trainer, new_recorder):
    class Look(new_recorder):
        def on_step(self, trainer, report):
            self.events.append(torch.are_deterministic_algorithms_enabled())

    before = switches()
    for wanted in (True, False):
        look = Look()
        make_trainer(hooks=[look], deterministic=wanted, steps=2).fit()
        assert [event for event in look.events if isinstance(event, bool)] == [wanted] * 2
        assert switches() == before

    class Fail(new_recorder):
        def on_step(self, trainer, report):
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        make_trainer(hooks=[Fail()], deterministic=True).fit()
    assert switches() == before


@pytest.mark.parametrize("threads", [1, 2])
def test_two_runs_and_an_interrupted_one_are_equal_to_the_bit(
    make_trainer, tmp_path, new_recorder, same_weights, same_optimizer, threads
):
    class Stop(new_recorder):
        def on_step(self, trainer, report):
            super().on_step(trainer, report)
            if report.step == 7:
                signal.raise_signal(signal.SIGINT)

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        runs = []
        for name in ("one", "two"):
            trainer = make_trainer(run_dir=tmp_path / name, deterministic=True)
            trainer.fit()
            runs.append(trainer)
        options = {"run_dir": tmp_path / "three", "deterministic": True}
        assert make_trainer(hooks=[Stop()], **options).fit().interrupted
        runs.append(make_trainer(**options))
        runs[-1].fit(resume=True)
    finally:
        torch.set_num_threads(before)
    for other in runs[1:]:
        assert same_weights(runs[0].model, other.model)
        assert same_optimizer(runs[0].take_step.optimizer, other.take_step.optimizer)


def test_changing_it_on_resume_is_said(make_trainer, tmp_path, recorder):
    make_trainer(run_dir=tmp_path).fit()
    make_trainer(run_dir=tmp_path, deterministic=True, hooks=[recorder]).fit(resume=True)
    (told,) = recorder.warnings
    assert told == (
        "resumed with a difference: environment.deterministic: None in the checkpoint, True now"
    )
