"""The learner's folder: nothing of theirs is ever lost, hints are earned."""

import json

import pytest

from course.comparison import distance
from course.diagnosis import Diagnosis
from course.exercise import all_exercises, find, starter_source, without_marks
from course.running import run_source
from course.twins import reference
from course.workspace import Workspace, fingerprint, variant_source


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path / "mine")


def passed(exercise):
    return Diagnosis(exercise.id, "passed")


def failed(exercise, *mistakes):
    return Diagnosis(exercise.id, "mistake" if mistakes else "difference", mistakes)


def test_opening_copies_the_starter_once(workspace, scores):
    path = workspace.open(scores)
    assert path.read_text(encoding="utf-8") == starter_source(scores, "zh")
    path.write_text("mine", encoding="utf-8")
    assert workspace.open(scores) == path
    assert path.read_text(encoding="utf-8") == "mine"
    assert Workspace(workspace.folder).current is scores


def test_reset_keeps_what_was_there(workspace, scores):
    path = workspace.open(scores)
    for text in ("first", "second"):
        path.write_text(text, encoding="utf-8")
        again, kept = workspace.reset(scores)
        assert again == path
        assert kept.read_text(encoding="utf-8") == text
        assert path.read_text(encoding="utf-8") == starter_source(scores, "zh")
    assert len(list(workspace.folder.glob("attention_01.old*.py"))) == 2


def test_progress_survives_and_the_language_is_remembered(workspace, scores):
    workspace.open(scores)
    workspace.attempted(scores, "x = 1", failed(scores, "ATTN-01"))
    workspace.attempted(scores, "x = 1  \n\n", failed(scores))  # blanks are no new attempt
    workspace.attempted(scores, "x = 2", passed(scores))
    read = Workspace(workspace.folder, "en")
    record = read.record(scores)
    assert [attempt["mistakes"] for attempt in record["attempts"]] == [["ATTN-01"], []]
    assert read.solved(scores)
    assert Workspace(workspace.folder).language == "en"


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"language": "xx", "exercises": {}}', '{"language": "zh", "exercises": 1}']
)
def test_a_damaged_progress_file_is_refused_not_overwritten(workspace, scores, text):
    workspace.open(scores)
    file = workspace.folder / "progress.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="is damaged"):
        Workspace(workspace.folder)
    assert file.read_text(encoding="utf-8") == text


def test_a_newer_progress_file_is_refused(workspace, scores):
    workspace.open(scores)
    file = workspace.folder / "progress.json"
    data = json.loads(file.read_text(encoding="utf-8")) | {"version": 99}
    file.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(ValueError, match="newer version"):
        Workspace(workspace.folder)


def test_hints_are_earned_by_changed_attempts(workspace, scores):
    workspace.open(scores)
    with pytest.raises(ValueError, match="attempt of your own"):
        workspace.hint(scores)
    workspace.attempted(scores, starter_source(scores, "zh"), failed(scores))
    with pytest.raises(ValueError, match="attempt of your own"):
        workspace.hint(scores)  # the starter is not an attempt
    numbers = []
    for text in ("a = 1", "a = 2", "a = 3", "a = 4"):
        workspace.attempted(scores, text, failed(scores))
        numbers += [workspace.hint(scores), workspace.hint(scores)]  # asking twice gives the same
    assert numbers == [1, 1, 2, 2, 3, 3, 3, 3]


def test_giving_up_brings_a_variant_back(workspace, scores):
    second = find("attention.02")
    workspace.open(scores)
    workspace.give_up(scores)
    assert not workspace.solved(scores)
    assert workspace.next() is second
    workspace.attempted(second, "x", passed(second))
    # another exercise is solved: now it returns, with a fault to find
    assert workspace.next() is scores
    path = workspace.open(scores)
    assert path.name == "attention_01_again.py"
    planted = path.read_text(encoding="utf-8")
    assert planted == variant_source(scores, "zh")
    results = run_source(scores, planted, 3)
    assert distance(results, reference(scores, 3)) > 1e-3
    assert not any(outcome.missing for outcome in results)
    workspace.attempted(scores, without_marks(scores.solution), passed(scores))
    assert workspace.solved(scores)
    assert workspace.path(scores).name == "attention_01.py"


def test_every_variant_differs_from_its_solution(workspace):
    for exercise in all_exercises().values():
        for language in ("zh", "en"):
            source = variant_source(exercise, language)
            assert fingerprint(source) != fingerprint(without_marks(exercise.solution))
            compile(source, exercise.id, "exec")


def test_the_last_one_given_up_returns_too(workspace):
    exercises = list(all_exercises().values())
    for exercise in exercises[:-1]:
        workspace.attempted(exercise, "x", passed(exercise))
    workspace.give_up(exercises[-1])
    assert workspace.next() is exercises[-1]
    assert workspace.open(exercises[-1]).stem.endswith("_again")
    workspace.attempted(exercises[-1], "y", passed(exercises[-1]))
    assert workspace.next() is None


def test_odd_files(workspace, scores, tmp_path):
    with pytest.raises(ValueError, match="is not there"):
        workspace.source(scores)
    path = workspace.open(scores)
    path.write_bytes("# 中文".encode("gbk"))
    with pytest.raises(ValueError, match="not UTF-8"):
        workspace.source(scores)
    path.write_bytes(b"\xef\xbb\xbfx = 1")
    assert workspace.source(scores) == "x = 1"
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match="is a file"):
        Workspace(tmp_path / "file")
    with pytest.raises(ValueError, match="language 'fr'"):
        Workspace(tmp_path / "new", "fr")
