"""The CTRL penalty against transformers, OpenAI's penalties against their formula."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

from inference.penalties import FrequencyPenalty, History, LogitBias, RepetitionPenalty

ids = st.lists(st.integers(0, 6), max_size=9)


@given(prompt=ids, generated=ids, penalty=st.sampled_from([0.5, 1.2, 3.0]), seed=st.integers(0, 99))
def test_repetition_penalty_equals_transformers(prompt, generated, penalty, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, 7, generator=generator)
    text = torch.tensor([[*prompt, *generated]], dtype=torch.long)
    expected = RepetitionPenaltyLogitsProcessor(penalty)(text, logits.clone())
    history = History([prompt], [generated], vocab_size=7)
    torch.testing.assert_close(RepetitionPenalty(penalty)(logits, history), expected)


@given(prompt=ids, generated=ids)
def test_presence_and_frequency_count_the_generated_text_only(prompt, generated):
    logits = torch.zeros(1, 7)
    history = History([prompt], [generated], vocab_size=7)
    actual = FrequencyPenalty(presence=0.25, frequency=-0.5)(logits, history)[0].tolist()
    assert actual == [
        -0.25 * (token in generated) + 0.5 * generated.count(token) for token in range(7)
    ]


@given(rows=st.lists(st.tuples(ids, ids), min_size=1, max_size=4))
def test_recording_step_by_step_equals_counting_at_once(rows):
    prompts = [prompt for prompt, _ in rows]
    shortest = min(len(generated) for _, generated in rows)
    generated = [generated[:shortest] for _, generated in rows]
    stepwise = History(prompts, vocab_size=7)
    for step in range(shortest):
        stepwise.record(torch.tensor([row[step] for row in generated]))
    whole = History(prompts, generated, vocab_size=7)
    assert torch.equal(stepwise.counts, whole.counts)
    assert torch.equal(stepwise.in_prompt, whole.in_prompt)
    order = torch.tensor([len(rows) - 1, 0, 0])
    stepwise.keep(order)
    chosen = [rows[i] for i in order.tolist()]
    kept = History([p for p, _ in chosen], [g[:shortest] for _, g in chosen], vocab_size=7)
    assert torch.equal(stepwise.counts, kept.counts)
    assert torch.equal(stepwise.in_prompt, kept.in_prompt)


def test_forbidden_tokens_stay_forbidden():
    logits = torch.tensor([[-math.inf, 1.0]])
    history = History([[0, 1]], [[0]], vocab_size=2)
    for penalty in (RepetitionPenalty(1.5), RepetitionPenalty(0.5), FrequencyPenalty(1.0, -1.0)):
        assert penalty(logits, history)[0, 0] == -math.inf
    assert LogitBias({0: 5.0})(logits)[0].tolist() == [-math.inf, 1.0]


def test_bias_is_added_to_every_row_and_bans_with_minus_infinity():
    logits = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    biased = LogitBias({2: -math.inf, 0: 1.5})(logits)
    assert biased.tolist() == [[2.5, 2.0, -math.inf], [1.5, 0.0, -math.inf]]
    assert logits[0, 2] == 3.0  # the model's own scores are needed again for logprobs
    with pytest.raises(ValueError, match=r"token id 3, but ids must be >= 0 and < 3"):
        LogitBias({3: 1.0})(logits)


def test_penalties_say_when_the_history_is_missing():
    for penalty in (RepetitionPenalty(1.2), FrequencyPenalty(0.5)):
        with pytest.raises(ValueError, match="needs the history of each row"):
            penalty(torch.zeros(1, 3))


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf])
def test_repetition_penalty_must_be_positive(value):
    with pytest.raises(ValueError, match=r"repetition_penalty must be a finite number > 0\.0"):
        RepetitionPenalty(value)
