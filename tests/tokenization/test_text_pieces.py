"""Splitting: nothing is lost, runs are bounded, and both regular-expression engines agree."""

import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

from tokenization.text_pieces import (
    BASE_BYTES,
    LONGEST_PIECE,
    SPLIT_PATTERN,
    byte_symbols,
    split_text,
)

LIBRARY = pre_tokenizers.Split(Regex(SPLIT_PATTERN), "isolated")

# What the rules treat differently: letters of several scripts, marks, digits, symbols, blanks
TELLING = (
    "aZé月あд\u0301\u093f\ufe0f١7½^'_.,。，“🙂👩\u200d\U0001f3fd \t\n\r\x85\xa0\u2028\u3000\x00"
)
telling_text = st.text(alphabet=st.sampled_from(TELLING), max_size=60)


def library_pieces(text):
    return [piece for piece, _ in LIBRARY.pre_tokenize_str(text)]


@given(st.text())
def test_pieces_join_to_the_text_and_are_short(text):
    pieces = split_text(text)
    assert "".join(pieces) == text
    assert all(1 <= len(piece) <= LONGEST_PIECE for piece in pieces)


@given(telling_text)
def test_both_engines_cut_alike(text):
    assert split_text(text) == library_pieces(text)


def test_both_engines_agree_on_every_assigned_character():
    # Unicode 3.2 is in every Python; 14.0, the library's, only in Python 3.11
    database = unicodedata if unicodedata.unidata_version == "14.0.0" else unicodedata.ucd_3_2_0
    known = [
        chr(code)
        for code in range(sys.maxunicode + 1)
        if database.category(chr(code)) not in ("Cn", "Cs", "Co")
    ]
    assert len(known) > 90_000
    # before and after a letter, after a digit: each class cuts differently
    text = "".join(f"a{character}b1{character}\n" for character in known)
    assert split_text(text) == library_pieces(text)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("The dog's bone", ["The", " dog", "'s", " bone"]),
        ("举头望明月，低头思故乡。", ["举头望明月", "，低头思故乡", "。"]),
        ("3.14159", ["3", ".", "14", "15", "9"]),
        ("if x:\n        return", ["if", " x", ":\n       ", " return"]),
        ("a\n\n    b", ["a", "\n\n   ", " b"]),
        ("\tx\t\ty", ["\tx", "\t", "\ty"]),
        ("a  1", ["a", " ", " ", "1"]),
        ("line,\r\nnext", ["line", ",\r\n", "next"]),
        ("", []),
    ],
)
def test_rules(text, pieces):
    assert split_text(text) == pieces


RUNS = ["a", "月", "\u0301", "7", "^", "。", " ", "\n", "\t", "\r\n", "\u3000", " ^", "^\n\t"]


@pytest.mark.parametrize("unit", RUNS)
@pytest.mark.parametrize("before", ["", " ", "^", "^\n", "a"])
def test_no_run_makes_a_long_piece(unit, before):
    for after in ("", "x", " x", "1"):
        pieces = split_text(before + unit * 1000 + after)
        assert max(map(len, pieces)) <= LONGEST_PIECE


@pytest.mark.parametrize(("unit", "bound"), [("a", 24), ("月", 24), ("7", 2), ("^", 16), (" ", 16)])
def test_bounds(unit, bound):
    assert split_text(unit * bound) == [unit * bound]
    assert split_text(unit * (bound + 1)) == [unit * bound, unit]


def test_longest_piece_is_reached():
    text = " " + "^" * 16 + "\n" * 4 + " " * 17
    assert max(map(len, split_text(text))) == LONGEST_PIECE


def test_byte_symbols_are_the_library_s():
    assert sorted(byte_symbols()) == sorted(pre_tokenizers.ByteLevel.alphabet())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    symbols = byte_symbols()
    for text in map(chr, [*range(1, 0x250), 0x6708, 0x1F642]):
        [(written, _)] = byte_level.pre_tokenize_str(text)
        assert written == "".join(symbols[byte] for byte in text.encode("utf-8"))


def test_base_bytes_are_sorted_by_symbol():
    written = [byte_symbols()[byte] for byte in BASE_BYTES]
    assert written == sorted(byte_symbols())
    assert sorted(BASE_BYTES) == list(range(256))
