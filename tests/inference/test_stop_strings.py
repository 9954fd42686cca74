"""The matcher against the slow definition: look at every prefix of the text."""

import doctest
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference import stop_strings
from inference.stop_strings import StopMatcher, failure_table

texts = st.text(alphabet="ab用\n", max_size=14)
stop_lists = st.lists(st.text(alphabet="ab用\n", min_size=1, max_size=5), max_size=4)


def slowly(text, stops):
    """The text before the stop string that is complete first; of several, the longest."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            longest = max(complete, key=len)
            return text[: end - len(longest)], longest
    return text, None


def held_back(text, stops):
    """The longest end of the text that begins a stop string."""
    for start in range(len(text) + 1):
        if any(stop.startswith(text[start:]) for stop in stops if len(stop) > len(text) - start):
            return text[start:]
    return ""


@given(text=texts, stops=stop_lists, cuts=st.lists(st.integers(0, 14), max_size=6))
def test_any_cutting_gives_the_definition(text, stops, cuts):
    matcher, shown = StopMatcher(stops), ""
    borders = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    for left, right in zip(borders, borders[1:], strict=False):
        shown += matcher.push(text[left:right])
        if matcher.found is None:
            # all that cannot become a stop string is shown, and nothing else
            assert shown == text[:right].removesuffix(held_back(text[:right], stops))
    expected, found = slowly(text, stops)
    assert matcher.found == found
    assert shown + matcher.flush() == expected


def test_nothing_comes_after_the_stop():
    matcher = StopMatcher(["ab"])
    assert matcher.push("xab") == "x"
    assert matcher.push("more") == ""
    assert matcher.flush() == ""
    assert matcher.found == "ab"


def test_without_stop_strings_everything_passes_at_once():
    matcher = StopMatcher([])
    assert [matcher.push(piece) for piece in ("a", "", "b")] == ["a", "", "b"]
    assert matcher.flush() == ""


@given(text=st.text(alphabet="ab", min_size=1, max_size=12))
def test_failure_table_is_its_definition(text):
    table = failure_table(text)
    assert len(table) == len(text) + 1
    for k in range(len(text) + 1):
        fitting = [j for j in range(k) if text[:j] == text[k - j : k]]
        assert table[k] == max(fitting, default=0)


@pytest.mark.timeout(20)
def test_time_is_linear_on_hostile_text():
    """Comparing from the start again at every character would take 10¹⁰ steps."""
    n = 100_000
    matcher = StopMatcher(["a" * n + "b"])
    shown = sum(len(matcher.push("a" * 7)) for _ in range(3 * n // 7))
    assert shown == 3 * n // 7 * 7 - n
    random.seed(0)
    many = StopMatcher(["ab" * 50 + "c"])
    assert many.push("ab" * n) == "ab" * (n - 50)


def test_worked_examples():
    assert doctest.testmod(stop_strings).attempted > 1
    assert doctest.testmod(stop_strings).failed == 0
