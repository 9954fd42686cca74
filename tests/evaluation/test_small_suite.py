"""Questions that cannot be answered without reading them, and can be by whoever knows."""

import random
import re

import pytest
import torch

from evaluation.likelihood import Likelihood
from evaluation.multiple_choice import chance_level, measure_choices, score_choices
from evaluation.small_suite import SUITE, cloze_questions, in_groups, suite_questions
from gpt_model.config import preset
from gpt_model.model import GPT
from tokenization.tokenizer import Tokenizer
from training.corpus import load_corpus
from training.prepare import prepare_data


@pytest.fixture(scope="module")
def questions():
    return {name: suite_questions(name) for name in SUITE}


def scored(opinion):
    """A scorer from (question, choice) → number."""
    return lambda qs: [[Likelihood(opinion(q, c), 1, False) for c in q.choices] for q in qs]


@pytest.mark.parametrize("name", SUITE)
def test_the_same_seed_gives_the_same_questions_and_another_does_not(questions, name):
    few = suite_questions(name, 43)
    assert suite_questions(name, 43) == few
    assert suite_questions(name, 43, seed=1) != few
    assert len(few) == 40
    assert len(questions[name]) == 400


@pytest.mark.parametrize("name", SUITE)
def test_an_oracle_is_always_right_and_the_blind_exactly_at_chance(questions, name):
    asked = questions[name]
    oracle = scored(lambda q, c: float(c == q.choices[q.answer]))
    assert measure_choices(asked, oracle)["accuracy"].value == 1.0
    rng = random.Random(3)
    liking = {choice: rng.random() for q in asked for choice in q.choices}
    blind = {
        "equal": lambda q, c: 0.0,
        "place": lambda q, c: float(q.choices.index(c)),
        "liking": lambda q, c: liking[c],
        "short": lambda q, c: -len(c) + liking[c],
    }
    for opinion in blind.values():
        assert measure_choices(asked, scored(opinion))["accuracy"].value == chance_level(asked)
    assert chance_level(asked) == 0.25


@pytest.mark.parametrize("seed", range(2))
def test_an_untrained_model_is_within_its_error_of_chance(questions, seed):
    tokenizer = Tokenizer.train_bpe(
        [document.text for document, _ in zip(load_corpus("python-docs"), range(20), strict=False)],
        600,
    )
    torch.manual_seed(seed)
    config = preset("gpt-micro", vocab_size=tokenizer.vocab_size, n_layers=1)
    score = score_choices(GPT(config), tokenizer, batch_size=64)
    for name, asked in questions.items():
        found = measure_choices(asked[:100], score)["accuracy"]
        assert abs(found.value - 0.25) <= 3 * found.error, (name, str(found))


def test_the_answers_are_right(questions):
    opens = {")": "(", "]": "[", "}": "{"}
    for q in questions["brackets"]:
        opened = re.findall(r"[(\[{]", q.prompt)
        assert [opens[c] for c in q.choices[q.answer]] == opened[::-1]
        assert {len(choice) for choice in q.choices} == {len(opened)}
    for q in questions["arithmetic"]:
        left, right = map(int, re.findall(r"\d+", q.prompt))
        assert int(q.choices[q.answer]) == left + right
    for q in questions["copying"]:
        words = re.findall(r"\w+", q.prompt)
        assert words == words[:4] * 3
        assert q.choices[q.answer] == f" {words[0]}"
        assert sorted(q.choices) == sorted(f" {word}" for word in set(words))


def test_cloze_words_stand_in_documents_that_training_holds_out(questions, tmp_path):
    train, val = prepare_data("python-docs", "bpe", tmp_path, vocab_size=300)
    tokenizer = Tokenizer.load(tmp_path)
    seen, kept = (tokenizer.decode(shard.tokens.tolist()) for shard in (train, val))
    whole = [q.prompt + q.choices[q.answer] for q in questions["cloze"]]
    assert sum(text in kept for text in whole) > 20  # the others come from the code
    assert not any(text in seen for text in whole)
    for q in questions["cloze"]:
        assert len({len(choice) for choice in q.choices}) == 1


def test_cloze_leaves_out_what_training_has_read():
    texts = [
        f"{'filler words ' * 15}then {word} ends" for word in ("alpha", "bravo", "delta", "gamma")
    ]
    assert len(cloze_questions(texts, 4, random.Random(0))) == 4
    with pytest.raises(ValueError, match="cloze questions, 4 are wanted"):
        cloze_questions(texts, 4, random.Random(0), seen=f"before {texts[2]} after")


def test_groups_never_repeat_an_answer_and_drop_what_is_left():
    items = [(f"q{n}", "abcab"[n % 5]) for n in range(50)]
    assert list(in_groups(items, random.Random(0))) == []  # three answers make no group of four
    items = [(f"q{n}", "abcde"[n % 5]) for n in range(10)]
    made = list(in_groups(items, random.Random(0)))
    assert len(made) == 8
    for question in made:
        prompt = int(question.prompt[1:])
        assert question.choices[question.answer] == "abcde"[prompt % 5]


def test_wrong_names_and_too_little_text_are_refused():
    with pytest.raises(ValueError, match="did you mean 'brackets'"):
        suite_questions("bracket")
    with pytest.raises(ValueError, match=r"n must be an integer >= 4, got 3"):
        suite_questions("copying", 3)
    with pytest.raises(ValueError, match="0 cloze questions, 8 are wanted"):
        cloze_questions(["too short"], 8, random.Random(0))
