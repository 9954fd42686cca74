"""The report ticks only what has evidence."""

import html.parser
import re

from course.checkpoints import CHECKPOINTS, evidence_for
from course.diagnosis import Diagnosis
from course.exercise import all_exercises
from course.report import markdown_report, overview_lines, write_report
from course.workspace import Workspace


def solve(workspace, *exercises):
    for exercise in exercises:
        workspace.attempted(exercise, "a", Diagnosis(exercise.id, "mistake", ("ATTN-01",)))
        workspace.attempted(exercise, "b", Diagnosis(exercise.id, "passed"))


def ticked(page):
    return len(re.findall(r"^- \[x\]", page, flags=re.MULTILINE))


def test_boxes_are_ticked_by_evidence(tmp_path):
    workspace = Workspace(tmp_path)
    assert ticked(markdown_report(workspace)) == 0
    wanted = evidence_for(CHECKPOINTS[0])
    solve(workspace, *wanted[:-1])
    assert ticked(markdown_report(workspace)) == 0
    solve(workspace, wanted[-1])
    page = markdown_report(workspace)
    assert ticked(page) == 1
    assert f"ATTN-01 没有除以 √d ({len(wanted)} 次)" in page
    # seen solutions are no evidence
    other = Workspace(tmp_path / "other")
    for exercise in wanted:
        other.give_up(exercise)
        other.attempted(exercise, "b", Diagnosis(exercise.id, "passed"))
    assert ticked(markdown_report(other)) == 0


def test_every_checkpoint_has_exercises_and_every_mark_is_known():
    marks = {mark for e in all_exercises().values() for mark in e.checkpoint}
    assert marks <= {checkpoint.key for checkpoint in CHECKPOINTS}


def test_all_solved_ticks_all(tmp_path):
    workspace = Workspace(tmp_path, "en")
    solve(workspace, *all_exercises().values())
    page = markdown_report(workspace)
    assert ticked(page) == sum(bool(evidence_for(checkpoint)) for checkpoint in CHECKPOINTS)
    total = len(all_exercises())
    assert f"{total} of {total} exercises solved" in page
    assert overview_lines(workspace)[0] == f"{total} of {total} exercises solved"


class Checker(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.tags, self.sources = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "rect", "polyline"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing_from_elsewhere(tmp_path):
    workspace = Workspace(tmp_path)
    exercises = list(all_exercises().values())
    solve(workspace, *exercises[:3])
    workspace.record(exercises[0])["passed"] = "2026-01-01T00:00:00+00:00"
    markdown, page = write_report(workspace, tmp_path / "out")
    text = page.read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    assert checker.sources == []
    assert "script" not in checker.tags
    assert checker.tags.count("svg") == 2  # the weeks, and the curve of two days
    assert text.count("<tr>") == len(exercises) + 1
    assert markdown.read_text(encoding="utf-8") == markdown_report(workspace)
