import os

import pytest

from foundation.files import MANIFEST, atomic_directory, read_json, write_json
from training.checkpoint_list import CHECKPOINT_KIND
from training.restart import NOTE_FILE, earlier_attempt, leave_note, resumes_by_itself
from training.run_directory import RunDirectory


@pytest.fixture
def torchrun(monkeypatch):
    """Pretend to be a process of the torchrun of this name."""

    def set_job(name):
        monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
        if name is not None:
            monkeypatch.setenv("TORCHELASTIC_RUN_ID", name)

    return set_job


def save(run):
    with atomic_directory(run / "step-000003", kind=CHECKPOINT_KIND, extra={}):
        pass


def another_process_wrote(run):
    note = read_json(run / NOTE_FILE)
    write_json(run / NOTE_FILE, {**note, "pid": note["pid"] + 1})


def test_only_the_same_job_in_another_process_goes_on(tmp_path, torchrun):
    torchrun("one")
    leave_note(tmp_path)
    save(tmp_path)
    assert not resumes_by_itself(tmp_path), "the same process trains a second time"
    another_process_wrote(tmp_path)
    assert resumes_by_itself(tmp_path)
    torchrun("two")
    assert not resumes_by_itself(tmp_path)
    torchrun(None)
    assert not resumes_by_itself(tmp_path)


def test_without_a_checkpoint_there_is_nothing_to_go_on_from(tmp_path, torchrun):
    torchrun("one")
    leave_note(tmp_path)
    another_process_wrote(tmp_path)
    assert not resumes_by_itself(tmp_path)
    assert not resumes_by_itself(None)
    assert earlier_attempt(tmp_path) == tmp_path


def test_the_name_alone_is_not_enough(tmp_path, torchrun, monkeypatch):
    """Without --rdzv-id every torchrun may be called "none"; its process tells them apart."""
    torchrun("none")
    leave_note(tmp_path)
    save(tmp_path)
    another_process_wrote(tmp_path)
    parent = os.getppid()
    monkeypatch.setattr("os.getppid", lambda: parent + 1)
    assert not resumes_by_itself(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"job": "one"}', "null"])
def test_a_damaged_note_counts_for_nothing(tmp_path, torchrun, text):
    torchrun("one")
    save(tmp_path)
    (tmp_path / NOTE_FILE).write_text(text, encoding="utf-8")
    assert not resumes_by_itself(tmp_path)


def test_the_directory_of_the_attempt_before_is_found_again(tmp_path, torchrun):
    torchrun("one")
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    leave_note(tmp_path / "b")
    assert earlier_attempt(tmp_path) is None
    another_process_wrote(tmp_path / "b")
    assert earlier_attempt(tmp_path) == tmp_path / "b"
    torchrun("two")
    assert earlier_attempt(tmp_path) is None
    torchrun(None)
    assert earlier_attempt(tmp_path / "nowhere") is None


def test_the_note_is_left_once_old_checkpoints_are_dealt_with(tmp_path, torchrun):
    """A refusal must not make the next attempt believe that the checkpoints are its own."""
    save(tmp_path)
    torchrun("one")
    with pytest.raises(ValueError, match="already holds"), RunDirectory(tmp_path).claimed():
        pass
    assert not (tmp_path / NOTE_FILE).exists()
    with RunDirectory(tmp_path).claimed(overwrite=True):
        assert (tmp_path / NOTE_FILE).exists()
        assert not (tmp_path / "step-000003" / MANIFEST).exists()
    torchrun(None)
    with RunDirectory(tmp_path).claimed():
        assert not (tmp_path / NOTE_FILE).exists(), "an old note could be mistaken for ours"


@pytest.mark.parametrize("restarted", [True, False])
def test_the_trainer_goes_on_by_itself(tmp_path, torchrun, make_trainer, restarted):
    torchrun("one")
    trainer = make_trainer(run_dir=tmp_path, steps=4)
    trainer.fit()
    again = make_trainer(run_dir=tmp_path, steps=4)
    if not restarted:
        with pytest.raises(ValueError, match="already holds checkpoints"):
            again.fit()
        return
    another_process_wrote(tmp_path)
    with pytest.warns(UserWarning, match="restarted by torchrun: going on"):
        again.fit()
    assert again.state.step == 4
    assert again._saved_step == 4
