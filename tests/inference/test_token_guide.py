"""The allowed tokens against trying each one; the distances against searching."""

import itertools
import re
import sys
from pathlib import Path

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.automaton import DEAD, FAR, ByteAutomaton
from inference.regex_syntax import parse_regex
from inference.token_guide import TokenGuide, TokenTrie
from tokenization.tokenizer import Tokenizer

sys.path.insert(0, str(Path(__file__).resolve().parent))
from random_regexes import patterns

LINES = ["ab ba aab bba 春天 春眠 abba 月 春春 a1 b2 12 🌕"]
BPE = Tokenizer.train_bpe(LINES * 3, 300)
CHARACTERS = Tokenizer.characters(["ab春1"])
TRIES = {"bpe": TokenTrie(BPE), "characters": TokenTrie(CHARACTERS)}


def guide_of(pattern, name="bpe"):
    return TokenGuide(ByteAutomaton(parse_regex(pattern), pattern), TRIES[name])


def spell(tokenizer, ids):
    return b"".join(tokenizer.token_bytes(i) for i in ids)


def can_go_on(pattern, data):
    """May a match begin with these bytes? Asked of `regex`, which knows partial matches.

    Half a character is tried with every kind of ending: 春, the only letter beyond ASCII that
    the patterns tell apart, and some other one.
    """
    endings = [b"", *("春".encode()[n:] for n in (1, 2))]
    endings += [
        bytes(tail) for n in (1, 2, 3) for tail in itertools.product((0x81, 0xA1), repeat=n)
    ]
    for ending in endings:
        try:
            text = (data + ending).decode()
        except UnicodeDecodeError:
            continue
        if regex.fullmatch(pattern, text, flags=regex.ASCII, partial=True):
            return True
    return False


@settings(max_examples=60)
@given(pattern=patterns(), data=st.data())
def test_the_mask_is_what_trying_every_token_says(pattern, data):
    """A token is allowed iff some match begins with what is written and the token."""
    guide = guide_of(pattern)
    written, state = b"", guide.start
    for _ in range(data.draw(st.integers(0, 3))):
        mask = guide.allowed(state, 99)
        choices = [t for t in mask.nonzero()[:, 0].tolist() if t != BPE.end_id]
        if not choices:
            break
        token = data.draw(st.sampled_from(choices))
        written, state = written + spell(BPE, [token]), guide.step(state, token)
    mask = guide.allowed(state, 99).tolist()
    for token in range(BPE.vocab_size):
        if token == BPE.end_id:
            whole = written.decode(errors="replace")
            expected = re.fullmatch(pattern, whole, re.ASCII) and whole.encode() == written
        else:
            expected = can_go_on(pattern, written + spell(BPE, [token]))
        assert mask[token] == bool(expected), spell(BPE, [token])


@settings(max_examples=40)
@given(pattern=patterns(), remaining=st.integers(1, 6), name=st.sampled_from(["bpe", "characters"]))
def test_the_budget_keeps_exactly_the_tokens_that_can_still_finish(pattern, remaining, name):
    guide = guide_of(pattern, name)
    trie = guide.trie

    def search(state):
        """The fewest tokens to an accepting state, by breadth-first search over real tokens."""
        seen, level, steps = {state}, [state], 0
        while level:
            if any(guide.accepts(s) for s in level):
                return steps
            reached = {guide.step(s, token) for s in level for token in trie.spelling}
            level = sorted(reached - seen - {DEAD})
            seen |= set(level)
            steps += 1
        return FAR

    assert guide.shortest(guide.start) == search(guide.start)
    assert guide.fits(remaining) == (search(guide.start) <= remaining)
    if not guide.fits(remaining):
        return
    known = {}
    mask = guide.allowed(guide.start, remaining)
    for token in trie.spelling:
        after = guide.step(guide.start, token)
        if after not in known:
            known[after] = FAR if after == DEAD else search(after)
        assert bool(mask[token]) == (known[after] <= remaining - 1)
    assert mask.any()


def test_special_and_banned_and_empty_tokens_are_never_text():
    trie = TokenTrie(BPE, banned={BPE.encode("a")[0]})
    guide = TokenGuide(ByteAutomaton(parse_regex("(.|\n)*"), "any"), trie)
    mask = guide.allowed(guide.start, 9)
    assert mask[BPE.end_id]
    assert not mask[BPE.encode("a")[0]]
    assert mask[BPE.encode("b")[0]]
    assert not trie.has_every_byte
    assert TRIES["bpe"].has_every_byte
    chat = Tokenizer.characters(["ab"], special_tokens=["<|endoftext|>", "<|user|>"])
    guide = TokenGuide(guide.automaton, TokenTrie(chat))
    allowed = guide.allowed(guide.start, 9).tolist()
    assert allowed == [i != chat.special_tokens["<|user|>"] for i in range(chat.vocab_size)]


def test_half_characters_are_states_of_their_own():
    guide = guide_of("春|昨")
    halves = [i for i in range(BPE.vocab_size) if BPE.token_bytes(i) == "春".encode()[:1]]
    state = guide.step(guide.start, halves[0])
    assert state != DEAD
    allowed = {BPE.token_bytes(i) for i in guide.allowed(state, 9).nonzero()[:, 0].tolist()}
    assert all("春".encode()[1:].startswith(d) or "昨".encode()[1:].startswith(d) for d in allowed)
    assert {"春".encode()[1:2], "昨".encode()[1:2]} <= allowed


def test_tokens_with_the_same_bytes_share_their_fate():
    class Twins:
        """A vocabulary that spells b twice."""

        vocab_size, special_tokens, stop_ids = 4, {"<end>": 0}, frozenset({0})

        def token_bytes(self, token):
            return [b"<end>", b"a", b"b", b"b"][token]

    guide = TokenGuide(ByteAutomaton(parse_regex("ab"), "ab"), TokenTrie(Twins()))
    assert guide.allowed(guide.start, 9).tolist() == [False, True, False, False]
    state = guide.step(guide.start, 1)
    assert guide.allowed(state, 9).tolist() == [False, False, True, True]


def test_complete_means_that_nothing_may_follow():
    guide = guide_of("ab?")
    state = guide.step(guide.start, BPE.encode("a")[0])
    assert guide.accepts(state)
    assert not guide.is_complete(state)
    after_ab = guide.step(state, BPE.encode("b")[0])
    assert guide.is_complete(after_ab)
    assert not guide.is_complete(guide.start)


def test_what_the_tokens_cannot_spell_does_not_count_as_going_on():
    guide = guide_of("a|abx", "characters")  # «b» is a token, but nothing spells the x after it
    assert guide.is_complete(guide.step(guide.start, CHARACTERS.encode("a")[0]))


@pytest.mark.parametrize(("pattern", "shortest"), [("a{9}", None), ("x", FAR), ("", 0)])
def test_shortest_counts_tokens(pattern, shortest):
    found = guide_of(pattern, "characters").shortest(1)
    assert found == (9 if shortest is None else shortest)
