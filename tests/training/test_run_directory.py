import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from foundation.files import atomic_directory, write_json
from training.run_directory import RunDirectory

ROOT = Path(__file__).resolve().parents[2]


def checkpoint(run_dir, step):
    facts = {"step": step, "val_loss": None}
    with atomic_directory(run_dir / f"step-{step:06d}", kind="checkpoint", extra=facts) as path:
        write_json(path / "trainer.json", facts)


def test_the_directory_is_made_and_left_clean(tmp_path):
    run = tmp_path / "a" / "b"
    with RunDirectory(run).claimed() as path:
        assert path == run
        assert (run / ".owner.json").is_file()
    assert not (run / ".owner.json").exists()


def test_overwrite_removes_what_the_last_run_left_and_nothing_else(tmp_path):
    checkpoint(tmp_path, 3)
    for name in ("metrics.jsonl", "loss.png", "notes.txt"):
        (tmp_path / name).write_text("x", encoding="utf-8")
    with RunDirectory(tmp_path).claimed(overwrite=True):
        left = {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")}
    assert left == {"notes.txt"}


def test_a_check_refuses_as_a_claim_does_and_deletes_nothing(tmp_path):
    run = RunDirectory(tmp_path)
    with pytest.raises(ValueError, match="holds no checkpoint"):
        run.check(resume=True)
    checkpoint(tmp_path, 3)
    (tmp_path / "metrics.jsonl").write_text("x", encoding="utf-8")
    with pytest.raises(ValueError, match="already holds checkpoints"):
        run.check()
    run.check(overwrite=True)
    run.check(resume=True)
    assert (tmp_path / "step-000003").is_dir()
    assert (tmp_path / "metrics.jsonl").is_file()
    with run.claimed(resume=True), pytest.raises(ValueError, match="in use"):
        RunDirectory(tmp_path).check(overwrite=True)


def test_resume_touches_nothing(tmp_path):
    checkpoint(tmp_path, 3)
    (tmp_path / "metrics.jsonl").write_text("x", encoding="utf-8")
    with RunDirectory(tmp_path).claimed(resume=True):
        assert (tmp_path / "step-000003").is_dir()
        assert (tmp_path / "metrics.jsonl").read_text(encoding="utf-8") == "x"


def test_leftovers_are_swept_only_by_the_owner(tmp_path):
    leftover = tmp_path / "step-000003.tmp-1234abcd"
    with RunDirectory(tmp_path).claimed():
        leftover.mkdir()  # another process's save, as far as the intruder knows
        with pytest.raises(ValueError, match="in use"), RunDirectory(tmp_path).claimed():
            pass
        assert leftover.is_dir()
    with RunDirectory(tmp_path).claimed():
        assert not leftover.exists()


def test_the_lock_of_another_process_is_respected_and_dies_with_it(tmp_path):
    script = textwrap.dedent(
        """
        import sys, os
        from training.run_directory import RunDirectory
        with RunDirectory(sys.argv[1]).claimed():
            print(os.getpid(), flush=True)
            sys.stdin.read()
        """
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        cwd=ROOT,
        encoding="utf-8",
    ) as child:
        pid = child.stdout.readline().strip()
        with pytest.raises(ValueError, match=f"process {pid} on "):
            with RunDirectory(tmp_path).claimed():
                pass
        child.kill()  # no clean-up: the operating system opens the lock
        child.wait()
        with RunDirectory(tmp_path).claimed():
            pass


def test_an_owner_file_that_cannot_be_read_is_no_obstacle(tmp_path):
    with RunDirectory(tmp_path).claimed():
        (tmp_path / ".owner.json").write_text("{", encoding="utf-8")
        with pytest.raises(ValueError, match="unknown process"), RunDirectory(tmp_path).claimed():
            pass


@pytest.mark.parametrize("options", [{"resume": 1}, {"overwrite": "yes"}])
def test_flags_are_booleans(tmp_path, options):
    with (
        pytest.raises(ValueError, match="must be true or false"),
        RunDirectory(tmp_path).claimed(**options),
    ):
        pass


def test_an_error_inside_gives_the_directory_back(tmp_path):
    with pytest.raises(RuntimeError), RunDirectory(tmp_path).claimed():
        raise RuntimeError
    with RunDirectory(tmp_path).claimed():
        pass
