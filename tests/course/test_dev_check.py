"""The course checked by mutation, one component a test, so that they run side by side."""

import pytest

from course.dev_check import check_course
from course.exercise import COMPONENTS


@pytest.mark.parametrize("component", COMPONENTS)
def test_every_mistake_is_recognised_and_nobody_is_accused(component):
    figures = check_course([component], seed=2024)
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
