"""A checkpoint is whole or is not a checkpoint, whichever operation of its save fails."""

import shutil
import sys

import pytest
from safetensors import SafetensorError

from foundation.files import sweep_temporaries
from training.checkpoint import latest_checkpoint, list_checkpoints
from training.checkpoint_list import remove_checkpoint
from training.metrics import METRICS_FILE


@pytest.fixture
def trainer(tmp_path, faults):
    """Steps 2, 3 are on the disk; the next save, at step 6, deletes the older one."""
    trainer = faults.make_run(tmp_path / "run", steps=3, save_every=1, eval_every=99)
    trainer.val_batches = None  # no best one, which would be kept too
    trainer.fit()
    return trainer


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


def test_an_error_at_every_operation_leaves_a_good_checkpoint(trainer, faults, tmp_path):
    run_dir = trainer.run_dir
    shutil.copytree(run_dir / "step-000002", spare := tmp_path / "spare")
    outcomes = []
    for k in range(1, 100):
        error, disk = fail_at(k, trainer, faults, faults.full)
        found = latest_checkpoint(run_dir)
        assert [c.step for c in list_checkpoints(run_dir)][0] in (2, 3)
        failed = disk.log[min(k, disk.count) - 1]
        outcomes.append((found.step, error is None, failed))
        if error is not None:
            assert "could not save the checkpoint" in str(error)
            assert "No space left on device" in str(error)
            # only after its own rename may the new one be what is found
            assert (found.step == 6) == ("rename to step-000006" in disk.log[: k - 1])
            assert "step-000003" in str(error) or found.step == 6
        sweep_temporaries(run_dir)
        assert {path.name for path in run_dir.iterdir()} <= {
            *("step-000002", "step-000003", "step-000006", METRICS_FILE, ".lock"),
        }
        if (run_dir / "step-000006").exists():  # as it was, for the next try
            shutil.rmtree(run_dir / "step-000006")
        if not (run_dir / "step-000002").exists():
            shutil.copytree(spare, run_dir / "step-000002")
        if disk.count < k:  # it never came to the k-th: the save went through
            break
    assert outcomes[-1][:2] == (6, True)
    assert len(outcomes) > 25
    # a file that cannot be deleted is no reason to fail: the new one is saved
    assert {done for _, done, what in outcomes if what.startswith(("unlink", "rmdir"))} >= {True}
    kinds = " ".join(what for _, _, what in outcomes)
    for kind in ("write model", "write trainer.json", "open manifest", "fsync", "rename", "mkdir"):
        assert kind in kinds


@pytest.mark.parametrize("error_type", [SafetensorError, RuntimeError])
def test_the_libraries_own_errors_are_told_the_same_way(trainer, faults, error_type):
    """Only some operations are torch's and safetensors': those that write tensors."""

    def tensors(what):
        return what.startswith("write ") and what.endswith(".safetensors")

    def fault(what):
        if tensors(what):
            raise error_type("No space left on device")

    _, healthy = fail_at(1000, trainer, faults, fault)
    places = [k for k, what in enumerate(healthy.log, 1) if tensors(what)]
    assert len(places) == 3  # weights, moments, random state
    for k in places:
        remove_checkpoint(trainer.run_dir / "step-000006")
        kept = [c.step for c in list_checkpoints(trainer.run_dir)]
        error, _ = fail_at(k, trainer, faults, fault)
        assert "could not save the checkpoint" in str(error)
        assert "No space left on device" in str(error)
        assert [c.step for c in list_checkpoints(trainer.run_dir)] == kept == [3]
        fail_at(1000, trainer, faults, fault)


def test_training_ends_with_one_clear_sentence(tmp_path, faults):
    trainer = faults.make_run(tmp_path / "run", steps=30)

    class FullFromStep6(faults.Hook):
        def on_step(self, _, report):
            disk.active = report.step > 5

    disk = faults.FaultyDisk(1, faults.full, active=False)
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


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit for a file's size")
@pytest.mark.parametrize("limit", [0, 100, 700, 3000, 9000, 20_000])
def test_a_disk_that_really_is_full(trainer, limit):
    """The system itself refuses to write more: no patched function stands in for it."""
    import resource
    import signal

    from training.resume import save_run

    trainer.state.step = 6
    sizes = [path.stat().st_size for path in (trainer.run_dir / "step-000003").iterdir()]
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.getsignal(signal.SIGXFSZ)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(OSError, match=r"could not save .*step-000006.*step-000003"):
            save_run(trainer, 0.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert max(sizes) > 20_000
    assert latest_checkpoint(trainer.run_dir).step == 3
    assert not list(trainer.run_dir.glob("*.tmp-*"))
