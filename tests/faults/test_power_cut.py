"""A power cut at any moment of a save: what was not flushed is lost, a good checkpoint is not.

Windows has no flush for directories, so the names of files are beyond our reach there.
"""

import os
import random
import shutil
import sys
from pathlib import Path

import pytest

import foundation.files
from training.checkpoint import latest_checkpoint
from training.resume import save_run

sys.path.insert(0, str(Path(__file__).resolve().parent))

from power_cut import PowerCut  # noqa: E402 - a helper beside this file

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows cannot flush a directory")


@pytest.fixture
def saves(tmp_path, faults):
    """Steps 2 and 4 are on the disk; `saves` saves step 6 and asks what each power cut leaves."""
    trainer = faults.make_run(tmp_path / "run", steps=4, save_every=2, eval_every=99)
    trainer.fit()
    trainer.state.step = 6
    found = []

    def look(cut, what):
        for lazy in (False, True):
            after = tmp_path / "after"
            cut.left(after, lazy)
            heard = []
            try:
                step = latest_checkpoint(after, heard.append).step
            except (ValueError, AttributeError):
                step = None  # damaged, or nothing there
            found.append((what, "lazy" if lazy else "eager", step))
            shutil.rmtree(after)

    def save(lost=lambda path: False):
        cut = PowerCut(tmp_path / "run")
        really = cut.flushed
        cut.flushed = lambda path: None if lost(path) else really(path)
        disk = faults.FaultyDisk(10**6, lambda what: None, before=lambda what: look(cut, what))
        try:
            with cut.watched(), disk.installed():
                save_run(trainer, 0.0)
            look(cut, "saved")
        finally:
            cut.close()
        return found

    return save


def test_a_good_checkpoint_is_left_at_every_moment(saves):
    found = saves()
    assert len(found) > 60
    assert {step for *_, step in found} == {4, 6}, [entry for entry in found if not entry[2]]
    for mode in ("eager", "lazy"):
        steps = [step for _, how, step in found if how == mode]
        assert steps == sorted(steps)
        assert steps[-1] == 6
    # once save_checkpoint has begun to delete the old one, the new one is sure to be there
    deleting = [step for what, _, step in found if what.startswith("rename to step-000002.tmp-")]
    assert deleting == [6, 6]


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.safetensors", "random.safetensors", "manifest.json"]
)
def test_it_would_show_if_a_file_were_not_flushed(saves, name):
    """The measure itself: a disk that lies about one file loses the checkpoint."""
    found = saves(lost=lambda path: path.name.startswith(name))
    assert found[-2][1:] == ("eager", 4)


@pytest.mark.parametrize("directory", ["run", "step-000006"])
def test_it_would_show_if_a_directory_were_not_flushed(saves, directory):
    found = saves(lost=lambda path: path.name.split(".")[0] == directory and path.is_dir())
    assert found[-1][1] == "lazy"
    assert found[-1][2] != 6


def test_files_are_flushed_before_the_manifest_and_the_manifest_before_the_rename(tmp_path, faults):
    trainer = faults.make_run(tmp_path / "run", steps=3)
    flushes, real = [], os.fsync
    disk = faults.FaultyDisk(10**6, lambda what: None)
    trainer.fit()
    trainer.state.step = 6
    with disk.installed():
        inner = os.fsync

        def fsync(descriptor):
            inner(descriptor)
            flushes.append(len(disk.log))

        os.fsync = fsync
        save_run(trainer, 0.0)
    assert os.fsync is real
    log = disk.log
    rename = log.index("rename to step-000006")
    manifest = next(i for i, what in enumerate(log) if what.startswith("write manifest.json"))
    tensors = [
        i for i, what in enumerate(log) if what.startswith("write ") and "safetensors" in what
    ]
    assert max(tensors) < manifest < rename
    # three tensor files and two texts, each flushed before the manifest is written
    assert len([i for i in flushes if i < manifest]) >= 5
    assert "fsync" in log[manifest:rename]  # the manifest, then the directory
    assert log[rename - 1] == "fsync"
    assert log[rename + 1] == "fsync"  # the parent, before anything else


def test_a_disk_that_damages_what_it_saved_costs_no_old_checkpoint(tmp_path, faults):
    """Read back before anything is deleted: the damage is noticed while the old ones are there."""
    trainer = faults.make_run(tmp_path / "run", steps=4, save_every=2, eval_every=99)
    trainer.fit()
    trainer.state.step = 6
    numbers = random.Random(5)

    def damage(what):
        if what == "rename to step-000006":
            (folder,) = (tmp_path / "run").glob("step-000006.tmp-*")
            file = numbers.choice(sorted(folder.glob("*.safetensors")))
            data = bytearray(file.read_bytes())
            data[numbers.randrange(len(data))] ^= 1 << numbers.randrange(8)
            file.write_bytes(data)

    disk = faults.FaultyDisk(10**6, lambda what: None, before=damage)
    with disk.installed(), pytest.raises(ValueError, match=r"step-000006.*safetensors is damaged"):
        save_run(trainer, 0.0)
    assert [path.name for path in sorted((tmp_path / "run").glob("step-*"))] == [
        *("step-000002", "step-000004", "step-000006"),
    ]
    with pytest.warns(UserWarning, match="falling back"):
        assert latest_checkpoint(tmp_path / "run").step == 4


def test_windows_has_no_flush_for_directories_and_saves_all_the_same(tmp_path, faults, monkeypatch):
    """There, opening a directory is an error; the rest of the save must not try."""

    class Windows:
        name = "nt"

        def __getattr__(self, name):
            if name == "open":
                raise PermissionError(13, "Permission denied")
            return getattr(os, name)

    trainer = faults.make_run(tmp_path / "run", steps=3)
    monkeypatch.setattr(foundation.files, "os", Windows())
    trainer.fit()
    assert latest_checkpoint(tmp_path / "run").step == 3
