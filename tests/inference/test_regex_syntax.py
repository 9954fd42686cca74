"""Our regular expressions against Python's `re`, on random ones and on every written-out case."""

import re
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.automaton import ByteAutomaton, Chain, Either, Repeat, literal
from inference.character_sets import characters
from inference.regex_syntax import parse_regex

sys.path.insert(0, str(Path(__file__).resolve().parent))
from random_regexes import patterns


def machine(pattern, **options):
    return ByteAutomaton(parse_regex(pattern, **options), pattern)


@settings(max_examples=300)
@given(pattern=patterns(), texts=st.lists(st.text(alphabet="ab春1_é\n🌕", max_size=7), max_size=12))
def test_random_patterns_match_what_re_matches(pattern, texts):
    mine, compiled = machine(pattern), re.compile(pattern, re.ASCII)
    for text in texts:
        assert mine.matches(text.encode()) == bool(compiled.fullmatch(text)), text


@settings(max_examples=40)
@given(pattern=patterns(), data=st.data())
def test_texts_made_from_the_pattern_match(pattern, data):
    """Random texts rarely match; these always do."""
    text = data.draw(st.from_regex(re.compile(pattern, re.ASCII), fullmatch=True))
    assert machine(pattern).matches(text.encode())


ranges = st.tuples(st.integers(0, 0x10FFFF), st.integers(0, 0x10FFFF)).map(sorted).map(tuple)


@settings(max_examples=200)
@given(span=ranges, near=st.integers(-2, 2), anywhere=st.characters(codec="utf-8"))
def test_ranges_of_characters_are_exact_at_their_borders(span, near, anywhere):
    low, high = span
    if 0xD800 <= low and high <= 0xDFFF:
        return
    mine = ByteAutomaton(characters([span]), "range")
    for code in (low + near, high + near, ord(anywhere)):
        if 0 <= code <= 0x10FFFF and not 0xD800 <= code <= 0xDFFF:
            assert mine.matches(chr(code).encode()) == (low <= code <= high)


CASES = {
    r"a\.b": ["a.b", "axb"],
    r"[]a]+": ["]a", "a", ""],
    r"[a\-z]": ["-", "a", "m"],
    r"[a-]": ["-", "a", "b"],
    r"[^\d\s]": ["x", "1", " ", "春"],
    r"\x41\u6625\U0001f315": ["A春🌕", "A春"],
    r"\t\n\r\f\v": ["\t\n\r\f\v"],
    r"a{,2}b{2,}c{3}": ["bbccc", "aabbbccc", "abccc"],
    r"x{y}{": ["x{y}{"],
    r"a*?b+?c??": ["b", "aabbc", "c"],
    r"(?P<name>a)(?:b)|": ["ab", "", "a"],
    r"^ab$|^c": ["ab", "c", "abc"],
    r".": ["\n", "\r", "é", ""],
    r"\W\D\S": ["  a", "é春x", "aaa"],
    r"()": ["", "a"],
    r"((a|b)(c|d)){2}": ["acbd", "ac"],
    r"(a*)*b": ["b", "aaab", "a"],
    r"\\\^\$\*": ["\\^$*"],
}


@pytest.mark.parametrize("pattern", CASES)
def test_written_out_cases(pattern):
    mine, expected = machine(pattern), re.compile(pattern, re.ASCII)
    for text in [*CASES[pattern], "", "a", "ab\n"]:
        assert mine.matches(text.encode()) == bool(expected.fullmatch(text)), text
    assert any(mine.matches(text.encode()) for text in CASES[pattern])


def test_search_is_anywhere_unless_anchored():
    for pattern in ("a1", "^a1", "a1$", "^a1$", "^a|1$", "a|^1"):
        mine = machine(pattern, search=True)
        for text in ("a1", "xa1", "a1x", "xa1\n春", "a", "1", "x1", "ax", "1x", ""):
            assert mine.matches(text.encode()) == bool(re.search(pattern.replace("$", r"\Z"), text))


REFUSED = {
    r"a(?=b)": "lookahead",
    r"a(?!b)": "lookahead",
    r"(?<=a)b": "lookbehind",
    r"(a)\1": r"\1 is not supported",
    r"(?P<x>a)(?P=x)": "named back-reference",
    r"\bword": r"\b is not supported",
    r"\p{L}": r"\p is not supported",
    r"(?i)a": "inline flags",
    r"(?>a)": "atomic group",
    r"a*+": "possessive",
    r"a**": "two quantifiers",
    r"*a": "nothing to repeat",
    r"(a": "never closed",
    r"a)": "unbalanced",
    r"[a": "never closed",
    r"[z-a]": "bad range z-a",
    r"[a-\d]": "bad range",
    r"[^\s\S]": "holds no character",
    r"a{3,2}": "wrong order",
    r"a{99999}": "<= 10000",
    "a\\": "backslash at the very end",
    r"\x4": "2 hexadecimal digits",
    r"\U00110000": "no character",
    "\ud800": "surrogate",
    r"a$b": "$ is supported at the end",
    r"a^b": "^ is supported at the beginning",
    "(" * 60 + ")" * 60: "more than 50 groups",
}


@pytest.mark.parametrize("pattern", REFUSED)
def test_what_is_not_supported_is_named_with_its_position(pattern):
    with pytest.raises(ValueError, match=r"regex .*, position \d+: ") as caught:
        parse_regex(pattern)
    assert REFUSED[pattern] in str(caught.value)


def test_what_is_too_large_or_impossible_is_refused():
    for pattern, words in (("(a|b)*a(a|b){20}", "states"), ("((a{1000}){200}){9}", "pieces")):
        with pytest.raises(ValueError, match=f"too large: it needs more than .* {words}"):
            machine(pattern)
    with pytest.raises(ValueError, match="must be a text, got 5"):
        parse_regex(5)


def test_distance_counts_bytes_and_dead_ends_are_gone():
    mine = machine("春{2}|ab")
    assert mine.distance[1] == 2
    # a class without characters cannot be walked through, so what needs it is dead at once
    nowhere = characters([])
    with pytest.raises(ValueError, match="no text at all can match nothing"):
        ByteAutomaton(nowhere, "nothing")
    optional = ByteAutomaton(Repeat(nowhere, 0, None), "optional")
    assert optional.matches(b"")
    assert not optional.table.any()
    # «a» would begin a text that can never be finished
    forked = ByteAutomaton(Either((Chain((literal("ac"), nowhere)), literal("b"))), "forked")
    assert forked.table[1, ord("b")] > 0
    assert forked.table[1, ord("a")] == 0
    assert ByteAutomaton(literal("é"), "é").matches("é".encode())
