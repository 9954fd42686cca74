"""What is written is compared after what does not matter has been taken away."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evaluation.exact_match import (
    ShortAnswer,
    measure_exact_match,
    normalize,
    prompt_ids,
    write_answers,
)
from gpt_model.config import GPTConfig
from gpt_model.model import GPT
from inference.generator import TextGenerator
from inference.sampling import SamplingParams
from tokenization.tokenizer import Tokenizer

TEXT = "3 + 4 = 7\nthe cat\n"


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        (" Paris.\n", "paris"),
        ("Ｐａｒｉｓ。", "paris"),
        ("«New   York»", "new york"),
        ("-7", "-7"),
        ("3.14", "3.14"),
        ("don't", "don't"),
        ("STRASSE", normalize("straße")),
        ("?!", ""),
        ("“ 是 ”", "是"),
        ("0: [", "0"),  # white space between the marks at an end
    ],
)
def test_what_is_taken_away(text, plain):
    assert normalize(text) == plain


@given(st.text(max_size=20))
def test_normalizing_twice_changes_nothing(text):
    once = normalize(text)
    assert normalize(once) == once
    assert once == once.strip()


def test_any_accepted_answer_counts_and_raw_is_stricter():
    questions = [
        ShortAnswer("q", ("seven", "7")),
        ShortAnswer("q", ("x",)),
        ShortAnswer("q", ("y",)),
    ]
    written = [" 7.", "x\n", "not y"]
    found = measure_exact_match(questions, lambda _: written)
    assert found["exact_match"].value == pytest.approx(2 / 3)
    assert found["exact_match_raw"].value == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="0 scores"):
        measure_exact_match([], lambda _: [])


@pytest.fixture(scope="module")
def pair():
    tokenizer = Tokenizer.characters([TEXT])
    torch.manual_seed(1)
    config = GPTConfig(
        vocab_size=tokenizer.vocab_size, max_seq_len=24, dim=16, n_layers=1, n_heads=2
    )
    model = GPT(config)
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
    return model, tokenizer


def test_answers_are_greedy_in_order_and_cut_at_their_own_stops(pair):
    model, tokenizer = pair
    questions = [
        ShortAnswer(prompt, ("x",), stop)
        for prompt in ("3 + 4", "the", "cat the", "7 =")
        for stop in (("t", "a"), (), (" ",))
    ]
    written = write_answers(model, tokenizer, max_new_tokens=9, batch_size=3)(questions)
    for question, text in zip(questions, written, strict=True):
        params = SamplingParams(temperature=0, max_new_tokens=9, stop=question.stop)
        assert text == TextGenerator(model, tokenizer).generate(question.prompt, params).text
        assert not any(stop in text for stop in question.stop)
    assert any(len(text) == 9 for text in written)


def test_a_long_prompt_keeps_its_end_and_room_for_the_answer(pair):
    model, tokenizer = pair
    prompt = "the cat " * 10 + "3 + 4 ="
    ids = prompt_ids(model, tokenizer, prompt, 10)
    assert len(ids) == 24 - 10
    assert tokenizer.decode(ids) == prompt[-14:]
    with pytest.raises(ValueError, match=r"max_new_tokens must be .* <= 23, got 24"):
        prompt_ids(model, tokenizer, prompt, 24)
    with pytest.raises(ValueError, match="batch_size"):
        write_answers(model, tokenizer, batch_size=0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (("", ("a",)), "the prompt is empty"),
        (("q", ()), "at least 1 accepted answer"),
        (("q", ("a",), ("",)), "a stop text is empty"),
    ],
)
def test_bad_questions_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        ShortAnswer(*fields)


@pytest.mark.parametrize(("written", "right"), [(")", 1), (" ) ", 1), ("]", 0), ("", 0), ("a)", 0)])
def test_an_answer_of_punctuation_alone_is_not_any_punctuation(written, right):
    """Normalized it is empty, and so is every other bracket, and no answer at all."""
    question = ShortAnswer("close it: (", (")",))
    found = measure_exact_match([question], lambda _: [written])
    assert found["exact_match"].value == right
