"""Lessons are correct: they run, every number in them is computed, what they point to exists."""

import doctest
import re
from pathlib import Path

import pytest

from course.catalogue import all_mistakes
from course.exercise import CONTENT, LANGUAGES, all_exercises

ROOT = Path(__file__).resolve().parents[2]
HEADINGS = ["hint 1", "hint 2", "hint 3", "why"]
LESSONS = [
    CONTENT / exercise.component / f"{exercise.file_name.removesuffix('.py')}.{language}.md"
    for exercise in all_exercises().values()
    for language in LANGUAGES
]


def prose_and_code(text):
    """The lines outside and inside of fenced code."""
    parts = re.split(r"^```\w*\n", text, flags=re.MULTILINE)
    assert len(parts) % 2, "a fence is not closed"
    return "".join(parts[0::2]), parts[1::2]


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.name)
def test_a_lesson_has_its_parts_and_its_numbers_are_computed(path):
    text = path.read_text(encoding="utf-8")
    prose, blocks = prose_and_code(text)
    titles = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    assert titles[1:] == HEADINGS
    assert "# " + titles[0] == text.splitlines()[0]
    examples = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, path.name, None, 0)
    said = []
    results = doctest.DocTestRunner(verbose=False).run(examples, out=said.append)
    assert results.attempted, "no worked number"
    assert not results.failed, "".join(said)
    computed = " ".join(example.want for example in examples.examples)
    for number in re.findall(r"(?<![\w.])\d[\d,]*\.\d+", re.sub(r"`[^`]*`", "", prose)):
        assert re.search(rf"(?<![\d.]){re.escape(number)}(?!\d)", computed), f"{number} is stated"


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.name)
def test_what_a_lesson_points_to_exists(path):
    prose, _ = prose_and_code(path.read_text(encoding="utf-8"))
    files = re.findall(r"`([\w/]+\.(?:py|md))`", prose)
    assert files, "no place in the book"
    for file in files:
        assert (ROOT / file).is_file(), file


@pytest.mark.parametrize("stem", sorted({path.name.rsplit(".", 2)[0] for path in LESSONS}))
def test_both_languages_show_the_same_computation(stem):
    shown = []
    for path in (p for p in LESSONS if p.name.startswith(stem + ".")):
        _, blocks = prose_and_code(path.read_text(encoding="utf-8"))
        shown.append(re.sub(r"#.*", "", "\n".join(blocks)))
    assert len(shown) == 2
    assert shown[0] == shown[1]


@pytest.mark.parametrize("mistake", all_mistakes().values(), ids=lambda m: m.id)
def test_a_mistake_leads_somewhere(mistake):
    assert (ROOT / mistake.link).is_file(), mistake.link
    for language, words in mistake.words.items():
        assert all(vars(words).values()), (mistake.id, language)
        assert ("？" if language == "zh" else "?") in words.question, mistake.id
