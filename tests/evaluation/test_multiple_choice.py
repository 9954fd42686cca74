"""Choosing by likelihood: ties, norms, the seam between prompt and choice."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evaluation.likelihood import Likelihood, score_tokens
from evaluation.multiple_choice import (
    Question,
    chance_level,
    choice_tokens,
    credit,
    measure_choices,
    score_choices,
)
from gpt_model.config import GPTConfig
from gpt_model.model import GPT
from tokenization.tokenizer import Tokenizer

TEXT = "the cat sat on the mat; the dog sat on the log. " * 20


def scores(*values):
    return [Likelihood(value, n, False) for value, n in values]


def test_each_norm_divides_by_its_own_length():
    # log-likelihoods: raw prefers "b", per byte "汉字" (6 bytes), per token "long"
    question = Question("x", ("b", "汉字", "long"), 0)
    row = scores((-2.0, 1), (-3.0, 2), (-4.0, 8))
    right = {}
    for answer in range(3):
        found = measure_choices([Question("x", question.choices, answer)], lambda _: [row])
        right |= {(name, answer): value.value for name, value in found.items()}
    assert [right["accuracy", a] for a in range(3)] == [1, 0, 0]
    assert [right["accuracy_per_byte", a] for a in range(3)] == [0, 1, 0]
    assert [right["accuracy_per_token", a] for a in range(3)] == [0, 0, 1]


@given(st.lists(st.sampled_from([-1.0, -2.0, -3.0]), min_size=2, max_size=6))
def test_ties_share_and_the_credits_of_all_answers_sum_to_one(values):
    credits = [credit(values, answer) for answer in range(len(values))]
    assert math.isclose(sum(credits), 1.0)
    assert all(c == 0 for c, v in zip(credits, values, strict=True) if v < max(values))


def test_chance_is_the_mean_over_questions():
    questions = [Question("x", ("a", "b"), 0), Question("x", ("a", "b", "c", "d"), 3)]
    assert chance_level(questions) == (1 / 2 + 1 / 4) / 2


def test_the_seam_is_where_the_choices_first_differ():
    tokenizer = Tokenizer.train_bpe([TEXT], 300)
    cases = {
        "the ca": ("t", "t sat", "p"),
        "the c": ("at", "at sat"),
        "on the ca": ("t sat on", "r ran on"),
        "the cat": (" sat", " ran"),
    }
    for prompt, choices in cases.items():
        pairs = choice_tokens(tokenizer, Question(prompt, choices, 0))
        assert len({tuple(context) for context, _ in pairs}) == 1
        for choice, (context, continuation) in zip(choices, pairs, strict=True):
            assert [*context, *continuation] == tokenizer.encode(prompt + choice)
            assert len(continuation) >= 1
            assert len(tokenizer.decode(context)) <= len(prompt)


def test_a_merge_across_the_seam_is_scored_whole():
    """«ca» + «t» is one token «cat»: nothing of the choice may end up in the context."""
    tokenizer = Tokenizer.train_bpe([TEXT], 300)
    prompt = "the ca"
    assert len(tokenizer.encode(prompt + "t")) <= len(tokenizer.encode(prompt))
    (context, first), (_, second) = choice_tokens(tokenizer, Question(prompt, ("t", "r"), 0))
    assert tokenizer.decode(context) == "the"
    assert tokenizer.decode(first) == " cat"
    assert tokenizer.decode(second) == " car"


def test_without_a_prompt_documents_begin_after_the_end_token():
    tokenizer = Tokenizer.characters(["abc"])
    pairs = choice_tokens(tokenizer, Question("", ("a", "b"), 0))
    assert pairs == [([tokenizer.end_id], [1]), ([tokenizer.end_id], [2])]
    bare = Tokenizer.characters(["abc"], special_tokens=())
    with pytest.raises(ValueError, match="no end token to begin from"):
        choice_tokens(bare, Question("", ("a", "b"), 0))


def test_the_model_is_asked_what_the_formula_says():
    tokenizer = Tokenizer.characters(["abcd "])
    torch.manual_seed(0)
    config = GPTConfig(
        vocab_size=tokenizer.vocab_size, max_seq_len=16, dim=16, n_layers=1, n_heads=2
    )
    model = GPT(config).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(30)
    questions = [Question("ab", ("c", "da"), 0), Question("dd a", ("b", "c", "d"), 1)]
    rows = score_choices(model, tokenizer, batch_size=2)(questions)
    for question, row in zip(questions, rows, strict=True):
        for choice, found in zip(question.choices, row, strict=True):
            pair = (tokenizer.encode(question.prompt), tokenizer.encode(choice))
            (wanted,) = score_tokens(model, [pair])
            assert math.isclose(found.log_likelihood, wanted.log_likelihood, abs_tol=1e-4)
            assert found.n_tokens == len(choice)


@pytest.mark.parametrize(
    ("choices", "answer", "message"),
    [
        (("a",), 0, "at least 2 choices, got 1"),
        (("a", ""), 0, "choice 1 is empty"),
        (("a", "a"), 0, "must differ"),
        (("a", "b"), 2, r"answer must be an integer >= 0 and <= 1, got 2"),
        (("a", "b"), True, "answer must be an integer"),
    ],
)
def test_bad_questions_are_refused(choices, answer, message):
    with pytest.raises(ValueError, match=message):
        Question("x", choices, answer)


def test_texts_begin_as_the_tokenizer_says(monkeypatch):
    tokenizer = Tokenizer.characters(["abc"])
    monkeypatch.setattr(Tokenizer, "start_ids", [7])
    assert choice_tokens(tokenizer, Question("c", ("a", "b"), 0)) == [([7, 3], [1]), ([7, 3], [2])]
    assert choice_tokens(tokenizer, Question("", ("a", "b"), 0)) == [([7], [1]), ([7], [2])]
