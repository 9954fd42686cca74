"""A conversation fits into the context: oldest turns go first, whole, and only when needed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.conversation import Conversation


class Characters:
    def encode(self, text):
        return [ord(character) for character in text]


def test_nothing_is_dropped_while_everything_fits():
    talk = Conversation(Characters(), 20, 5)
    assert talk.prompt("abc") == ("abc", 0)
    talk.remember("abc", "de")
    assert talk.prompt("0123456789"[:9]) == ("abcde\n012345678", 0)  # 15 = 20 - 5, exactly full


def test_the_oldest_turn_is_dropped_whole_and_stays_forgotten():
    talk = Conversation(Characters(), 20, 5)
    talk.remember("abc", "de")
    talk.remember("f", "g")
    assert talk.prompt("012345678") == ("fg\n012345678", 1)
    assert talk.prompt("0") == ("fg\n0", 0)


def test_a_message_that_cannot_fit_costs_no_memory():
    talk = Conversation(Characters(), 20, 5)
    talk.remember("abc", "de")
    with pytest.raises(ValueError, match=r"16 tokens, at most 15 fit.*context is 20.*keeps 5"):
        talk.prompt("x" * 16)
    assert talk.turns == [("abc", "de")]


def test_reset_and_limits():
    talk = Conversation(Characters(), 20, 5)
    talk.remember("abc", "de")
    talk.reset()
    assert talk.prompt("x") == ("x", 0)
    for n_new in (0, 20, True):
        with pytest.raises(ValueError, match=r"max_new_tokens must be an integer >= 1 and <= 19"):
            talk.make_room_for(n_new)


@given(
    st.lists(st.text("ab", max_size=12), max_size=6),
    st.text("ab", min_size=1, max_size=10),
    st.integers(1, 9),
)
def test_what_is_read_always_leaves_room_and_drops_no_more_than_needed(turns, question, n_new):
    talk = Conversation(Characters(), 20, n_new)
    for turn in turns:
        talk.remember(turn, "")
    text, n_dropped = talk.prompt(question)
    assert len(text) + n_new <= 20
    assert text == "\n".join([*turns[n_dropped:], question])
    if n_dropped:  # keeping one more turn would not have fitted
        assert len("\n".join([*turns[n_dropped - 1 :], question])) + n_new > 20
