"""One text growing token by token: what shows when, and why it ends."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inference.continuation import Continuation, take_notes
from inference.sampling import SamplingParams
from tokenization.tokenizer import Tokenizer

TOKENIZER = Tokenizer.train_bpe(["月光，月光。moonlight moonlight"], 275)


def written(ids, params, context=None):
    row = Continuation([1, 2], TOKENIZER, params, context=context)
    shown = []
    for token in ids:
        if row.reason is not None:
            break
        shown.append(row.feed(token))
    return row, shown


@given(text=st.text(alphabet="月光。m é🌕\n", max_size=12), data=st.data())
def test_pieces_are_whole_characters_and_add_up_to_the_decoded_text(text, data):
    ids = TOKENIZER.encode(text)
    ids = ids[: data.draw(st.integers(0, len(ids)))]  # may end within a character
    row, shown = written(ids, SamplingParams(max_new_tokens=max(1, len(ids))))
    if ids:
        assert "".join(shown) == row.generation().text == TOKENIZER.decode(ids)
        assert "�" not in "".join(shown[:-1])
        assert row.generation().ids == tuple(ids)


@given(
    text=st.text(alphabet="月光。m\n", max_size=12),
    stops=st.lists(st.text(alphabet="月光。m\n", min_size=1, max_size=3), min_size=1, max_size=3),
)
def test_stop_strings_do_not_care_about_token_borders(text, stops):
    ids = TOKENIZER.encode(text)
    params = SamplingParams(stop=stops, max_new_tokens=100)
    row, shown = written(ids, params)
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    if not ends:
        assert row.reason is None
        return
    first = min(ends)
    length = max(len(stop) for stop in stops if text[:first].endswith(stop))
    assert row.reason == "stop"
    assert "".join(shown) == row.generation().text == text[: first - length]
    # the tokens that make up the stop string are still listed, and none after them
    assert row.generation().ids == tuple(ids[: len(row.ids)])
    assert first <= len(TOKENIZER.decode(row.ids))


def test_reasons():
    ids = TOKENIZER.encode("moonlight月光")
    assert written(ids, SamplingParams(max_new_tokens=2))[0].reason == "length"
    assert written(ids, SamplingParams(max_new_tokens=9), context=4)[0].reason == "context"
    # when both are reached with the same token, the user's own limit is named
    assert written(ids, SamplingParams(max_new_tokens=2), context=4)[0].reason == "length"
    assert written([], SamplingParams(max_new_tokens=0))[0].reason == "length"
    assert written([], SamplingParams(), context=2)[0].reason == "context"
    row, shown = written([ids[0], TOKENIZER.end_id, ids[1]], SamplingParams())
    assert row.reason == "end"
    assert row.generation().ids == (ids[0], TOKENIZER.end_id)
    assert "".join(shown) == TOKENIZER.decode(ids[:1])
    # the end counts as a token: it may be the last one allowed
    assert written([TOKENIZER.end_id], SamplingParams(max_new_tokens=1))[0].reason == "end"


def test_held_back_text_is_released_at_the_end():
    ids = TOKENIZER.encode("mo")
    params = SamplingParams(stop=("moonX",), max_new_tokens=len(ids))
    row, shown = written(ids, params)
    assert row.reason == "length"
    assert "".join(shown) == "mo"
    # half a character at the end becomes �, and may complete a stop string
    half = TOKENIZER.encode("🌕")[:1]
    row, shown = written(half, SamplingParams(max_new_tokens=1))
    assert shown == ["�"]
    row, shown = written(half, SamplingParams(max_new_tokens=1, stop=("�",)))
    assert (shown, row.reason) == ([""], "stop")


def test_nothing_is_fed_after_the_end():
    row, _ = written(TOKENIZER.encode("m"), SamplingParams(max_new_tokens=1))
    with pytest.raises(AssertionError, match="finished"):
        row.feed(5)
    unfinished, _ = written([], SamplingParams())
    with pytest.raises(AssertionError, match="still being written"):
        unfinished.generation()


def test_notes_are_log_probabilities_of_the_raw_scores():
    logits = torch.tensor([[1.0, 2.0, 2.0, -1.0], [0.0, 0.0, 0.0, 0.0]])
    expected = logits.log_softmax(-1)
    first, second = take_notes(logits, [3, 1], 2)
    assert first.logprob == pytest.approx(float(expected[0, 3]))
    assert [token for token, _ in first.top] == [1, 2]  # a tie: the lower id first
    assert [token for token, _ in second.top] == [0, 1]
    assert second.top[0][1] == pytest.approx(-1.386294)
    assert take_notes(logits, [0, 0], 0)[0].top == ()
