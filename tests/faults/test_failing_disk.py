"""A checkpoint is whole or is not a checkpoint, whichever operation of its save fails."""

import errno

import pytest
from safetensors import SafetensorError

from foundation.files import sweep_temporaries
from training.checkpoint import latest_checkpoint, list_checkpoints
from training.checkpoint_list import remove_checkpoint
from training.metrics import METRICS_FILE


@pytest.fixture
def trainer(tmp_path, faults):
    """Three steps are saved; the next save is at step 6."""
    trainer = faults.make_run(tmp_path / "run", steps=3)
    trainer.fit()
    return trainer


def full(what):
    raise OSError(errno.ENOSPC, "No space left on device", what)


def fail_at(k, trainer, faults, fault):
    """Save step 6 on a disk that fails at operation k; return (error, number of operations)."""
    from training.resume import save_run

    trainer.state.step = 6
    disk = faults.FaultyDisk(k, fault)
    error = None
    with disk.installed():
        try:
            save_run(trainer, 0.0)
        except OSError as caught:
            error = caught
    return error, disk


def test_an_error_at_every_operation_leaves_a_good_checkpoint(trainer, faults):
    run_dir = trainer.run_dir
    outcomes = []
    for k in range(1, 100):
        error, disk = fail_at(k, trainer, faults, full)
        found = latest_checkpoint(run_dir)
        outcomes.append((found.step, error is None, disk.log[-1]))
        if error is not None:
            assert "could not save the checkpoint" in str(error)
            assert "No space left on device" in str(error)
            assert found.step == 3 or "rename" in disk.log[-1] or "fsync" in disk.log[-1]
            assert "step-000003" in str(error) or found.step == 6
        sweep_temporaries(run_dir)
        assert {path.name for path in run_dir.iterdir()} <= {
            *("step-000003", "step-000006", METRICS_FILE, ".lock"),
        }
        if disk.count < k:  # it never came to the k-th: the save went through
            break
    assert outcomes[-1][:2] == (6, True)
    assert len(outcomes) > 15
    kinds = " ".join(what for _, _, what in outcomes)
    for kind in ("write model", "write optimizer", "open manifest", "fsync", "rename", "mkdir"):
        assert kind in kinds


@pytest.mark.parametrize("error_type", [SafetensorError, RuntimeError])
def test_the_libraries_own_errors_are_told_the_same_way(trainer, faults, error_type):
    """Only some operations are torch's and safetensors': those that write tensors."""

    def fault(what):
        if what.startswith("write"):
            raise error_type("No space left on device")

    _, healthy = fail_at(1000, trainer, faults, fault)
    places = [k for k, what in enumerate(healthy.log, 1) if what.startswith("write")]
    assert len(places) == 3  # weights, moments, random state
    for k in places:
        remove_checkpoint(trainer.run_dir / "step-000006")  # step 3, the best, is still there
        error, _ = fail_at(k, trainer, faults, fault)
        assert "could not save the checkpoint" in str(error)
        assert "No space left on device" in str(error)
        assert [c.step for c in list_checkpoints(trainer.run_dir)] == [3]
        fail_at(1000, trainer, faults, fault)


def test_training_ends_with_one_clear_sentence(tmp_path, faults):
    trainer = faults.make_run(tmp_path / "run", steps=30)

    class FullFromStep6(faults.Hook):
        def on_step(self, _, report):
            disk.active = report.step > 5

    disk = faults.FaultyDisk(1, full, active=False)
    trainer.hooks.hooks.append(FullFromStep6())
    with disk.installed(), pytest.raises(OSError, match="could not save .*step-000006") as caught:
        trainer.fit()
    assert f"the last good one is {tmp_path / 'run' / 'step-000003'}" in str(caught.value)
    assert "then resume" in str(caught.value)
    # some space was freed: the run goes on to the same end
    resumed = faults.continue_run(tmp_path / "run")
    whole = faults.continue_run(tmp_path / "whole")
    assert faults.digest(resumed) == faults.digest(whole)
    assert [c.step for c in list_checkpoints(tmp_path / "run")][-1] == 30
