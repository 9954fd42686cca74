"""The course checked by mutation, one component a test, so that they run side by side."""

import pytest

from course import mutants
from course.dev_check import check_course
from course.exercise import COMPONENTS, find


@pytest.mark.parametrize("component", COMPONENTS)
def test_every_mistake_is_recognised_and_nobody_is_accused(component):
    figures = check_course([component], seed=2024, n_mutants=3)
    ours = [line for line in figures.complaints if "no exercise has it" not in line]
    assert ours == []
    assert figures.exercises
    assert figures.mistakes
    assert figures.share_exact >= 0.97
    assert figures.false_accusations == 0


def test_a_fault_of_the_course_would_be_found(monkeypatch):
    """Mutation testing of the mutation testing: a bank that cannot work is complained about."""
    from course import dev_check, diagnosis

    # a diagnosis that passes everything
    monkeypatch.setattr(
        dev_check, "diagnose", lambda e, yours, seed: diagnosis.Diagnosis(e.id, "passed")
    )
    figures = check_course(["attention.01"], seed=1)
    assert any("starter passes" in line for line in figures.complaints)
    assert figures.exact == 0
    # one that accuses everybody of the same
    monkeypatch.setattr(
        dev_check,
        "diagnose",
        lambda e, yours, seed: diagnosis.Diagnosis(e.id, "mistake", ("ATTN-01",)),
    )
    figures = check_course(["attention.01"], seed=1)
    assert figures.false_accusations > 3
    assert figures.share_exact < 0.97


@pytest.mark.parametrize(
    "limits", [{"LINES": 1000, "SECONDS": 1e9}, {"LINES": 10**12, "SECONDS": 0.2}], ids=str
)
def test_a_mutant_that_never_ends_is_ended(monkeypatch, limits):
    for name, limit in limits.items():
        monkeypatch.setattr(mutants, name, limit)
    exercise = find("attention.01")
    source = "def attention_scores(q, k):\n    while True:\n        q = q + 1\n"
    outcomes = mutants.run_mutant(exercise, source, 1)
    assert [outcome.error for outcome in outcomes] == ["it does not end"] * exercise.cases
    changed = list(mutants.mutants(exercise, 100, seed=1))
    assert len(changed) == len(set(changed)) > 3
    assert all("def attention_scores" in text for text in changed)
