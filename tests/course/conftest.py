import pytest

from course.exercise import find, without_marks


@pytest.fixture(autouse=True)
def _answers(request):
    """Quickly, unless a test asks for `plain_answers`."""
    if "plain_answers" not in request.fixturenames:
        request.getfixturevalue("forked_answers")


@pytest.fixture
def plain_answers():
    """Processes started as a learner's are."""


@pytest.fixture
def scores():
    return find("attention.01")


@pytest.fixture
def solution(scores):
    return without_marks(scores.solution)
