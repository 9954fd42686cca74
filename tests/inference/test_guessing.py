"""Where guesses come from: earlier text, by brute force; a draft model that is rolled back."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_model.config import GPTConfig
from gpt_model.model import GPT
from inference.guessing import DraftModel, PromptLookup
from tokenization.tokenizer import Tokenizer


def nothing(logits, guessed):
    raise AssertionError("earlier text needs no model")


def looked_up(ids, n, longest, shortest):
    """The definition: the longest end of the text that occurred before, where it did last."""
    for size in range(longest, shortest - 1, -1):
        if size > len(ids):
            continue
        for begin in range(len(ids) - size - 1, -1, -1):
            if ids[begin : begin + size] == ids[-size:]:
                text = list(ids)
                for i in range(n):
                    text.append(text[begin + size + i])
                return text[len(ids) :]
    return []


@settings(max_examples=200)
@given(
    text=st.lists(st.integers(0, 2), min_size=1, max_size=30),
    grows=st.lists(st.integers(1, 4), max_size=6),
    n=st.integers(1, 6),
    shortest=st.integers(1, 2),
    longer=st.integers(0, 2),
)
def test_earlier_text_is_found_as_by_searching_all_of_it(text, grows, n, shortest, longer):
    source = PromptLookup(shortest + longer, shortest).begin()
    end = max(1, len(text) - sum(grows))
    for grow in [0, *grows]:
        end = min(len(text), end + grow)
        ids = text[:end]
        assert source.guess(ids, n, nothing) == looked_up(ids, n, shortest + longer, shortest)


def test_repetition_is_guessed_without_end():
    assert PromptLookup(2, 2).begin().guess([7, 8, 7, 8], 5, nothing) == [7, 8, 7, 8, 7]


TOKENIZER = Tokenizer.characters(["abcdefghij"])


@pytest.mark.parametrize("context", [5, 12, 40])
@settings(max_examples=40)
@given(data=st.data())
def test_a_draft_rolls_back_what_was_wrong(context, data):
    """Whatever was accepted: the same guesses as a draft that reads everything afresh."""
    torch.manual_seed(0)
    sizes = {"dim": 8, "n_layers": 1, "n_heads": 2, "position": "rope", "init_std": 0.5}
    model = GPT(GPTConfig(vocab_size=TOKENIZER.vocab_size, max_seq_len=context, **sizes))
    source = DraftModel(model.double(), TOKENIZER)
    draft, ids = source.begin(), [1, 2, 3]

    def greedy(logits, guessed):
        return int(logits.argmax())

    with torch.inference_mode():
        for _ in range(6):
            n = data.draw(st.integers(1, 3))
            guessed = draft.guess(ids, n, greedy)
            if len(ids) + n < context:  # beyond it, what was forgotten depends on the past
                assert guessed == source.begin().guess(ids, n, greedy)
            kept = data.draw(st.integers(0, len(guessed)))
            new = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=3))
            ids = [*ids, *guessed[:kept], *new]


def test_a_draft_stops_when_told():
    sizes = {"dim": 8, "n_layers": 1, "n_heads": 2}
    model = GPT(GPTConfig(vocab_size=TOKENIZER.vocab_size, max_seq_len=9, **sizes))
    draft = DraftModel(model, TOKENIZER).begin()
    with torch.inference_mode():
        assert draft.guess([1], 5, lambda logits, guessed: None if len(guessed) == 2 else 4) == [
            *(4, 4)
        ]
