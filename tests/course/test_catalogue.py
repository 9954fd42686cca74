"""The catalogue is whole in both languages, and everything it points at exists."""

import re
from pathlib import Path

import pytest

from course.catalogue import all_mistakes, bank_of, read_mistake
from course.evidence import EVIDENCE
from course.exercise import LANGUAGES, all_exercises, starter_source
from course.lessons import lesson
from course.twins import patched

ROOT = Path(__file__).resolve().parents[2]
MISTAKES = list(all_mistakes().values())


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.id)
def test_every_entry_is_whole(mistake):
    assert re.fullmatch(r"[A-Z]+-\d\d", mistake.id)
    assert (ROOT / mistake.link).is_file(), mistake.link
    if mistake.evidence:
        name, _, result = mistake.evidence.partition(" ")
        assert name in EVIDENCE
        assert result
    assert set(mistake.words) == set(LANGUAGES)
    for language, words in mistake.words.items():
        for part in (words.name, words.question, words.effect):
            assert part.strip() == part != ""
            chinese = len(re.findall(r"[一-鿿]", part))
            assert (chinese > 0) == (language == "zh"), part
        if not mistake.accept:
            assert "？" in words.question or "?" in words.question
        assert not words.name.endswith(("。", "."))
    assert mistake.patches
    for name in mistake.patches:
        assert name in all_exercises(), name
        exercise = all_exercises()[name]
        assert patched(exercise, [mistake]) != exercise.solution


def test_names_are_not_used_twice():
    for language in LANGUAGES:
        names = [mistake.words[language].name for mistake in MISTAKES]
        assert len(names) == len(set(names)), sorted(n for n in names if names.count(n) > 1)


def test_every_exercise_has_a_lesson_in_both_languages_and_a_bank():
    for exercise in all_exercises().values():
        assert bank_of(exercise), exercise.id
        titles = {language: lesson(exercise, language).title for language in LANGUAGES}
        assert len(set(titles.values())) == 2, titles
        starters = {language: starter_source(exercise, language) for language in LANGUAGES}
        assert starters["zh"] != starters["en"], exercise.id


def test_an_incomplete_entry_is_refused():
    words = {"name": "a", "question": "b?", "effect": "c"}
    whole = {"link": "README.md", "patches": {}, "zh": words, "en": words}
    read_mistake("X-01", "x", whole)
    for part in ("link", "patches", "zh", "en"):
        with pytest.raises(KeyError, match=part):
            read_mistake("X-01", "x", {k: v for k, v in whole.items() if k != part})
    with pytest.raises(TypeError, match="effect"):
        read_mistake("X-01", "x", whole | {"en": {"name": "a", "question": "b?"}})
    with pytest.raises(ValueError, match="unknown fields"):
        read_mistake("X-01", "x", whole | {"evidenec": "row_sum weights"})
