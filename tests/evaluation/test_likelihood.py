"""The log-likelihood of a continuation: against multiplying one token at a time."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation import likelihood
from evaluation.likelihood import Likelihood, score_tokens
from gpt_model.config import GPTConfig
from gpt_model.model import GPT

LIMIT = 8


def make_model(**changes):
    torch.manual_seed(0)
    fields = dict(vocab_size=13, max_seq_len=LIMIT, dim=16, n_layers=2, n_heads=2, dropout=0.3)
    model = GPT(GPTConfig(**{**fields, **changes}))
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
    return model


MODEL = make_model()
ids = st.lists(st.integers(0, 12), max_size=2 * LIMIT)
pair = st.tuples(ids.filter(len), st.lists(st.integers(0, 12), max_size=LIMIT))


@torch.no_grad()
def one_by_one(model, context, continuation):
    """Every token from a window of its own, cut to what the whole pair leaves on the left."""
    model.eval()
    row = [*context, *continuation][-(LIMIT + 1) :]
    total, greedy = 0.0, True
    for place in range(len(row) - len(continuation), len(row)):
        logits = model(torch.tensor([row[:place]])).logits[0, -1].double()
        total += float(torch.log_softmax(logits, -1)[row[place]])
        greedy &= int(logits.argmax()) == row[place]
    return Likelihood(total, len(continuation), greedy)


@settings(max_examples=40, deadline=None)
@given(st.lists(pair, min_size=1, max_size=9), st.integers(1, 4))
def test_alone_in_a_batch_and_one_by_one_are_the_same(pairs, batch_size):
    together = score_tokens(MODEL, pairs, batch_size=batch_size)
    for (context, continuation), found in zip(pairs, together, strict=True):
        (alone,) = score_tokens(MODEL, [(context, continuation)])
        slow = one_by_one(MODEL, context, continuation)
        for other in (alone, slow):
            assert math.isclose(found.log_likelihood, other.log_likelihood, abs_tol=2e-4)
        assert found.n_tokens == len(continuation)
        assert found.is_greedy == slow.is_greedy


@pytest.mark.parametrize("changes", [{"position": "rope"}, {"token_shift": True}])
def test_padding_changes_nothing_in_other_families(changes):
    model = make_model(**changes)
    pairs = [([1], [2]), ([3, 4, 5, 6], [7, 8, 9]), ([1, 2, 3], [4])]
    for together, one in zip(score_tokens(model, pairs), pairs, strict=True):
        (alone,) = score_tokens(model, [one])
        assert math.isclose(together.log_likelihood, alone.log_likelihood, abs_tol=1e-4)


def test_probabilities_of_all_continuations_sum_to_one():
    pairs = [([5, 1], [a, b]) for a in range(13) for b in range(13)]
    total = sum(math.exp(found.log_likelihood) for found in score_tokens(MODEL, pairs))
    assert math.isclose(total, 1.0, abs_tol=1e-4)


def test_the_left_is_cut_and_the_continuation_never():
    context = list(range(12))
    long, short = score_tokens(MODEL, [(context, [3, 4]), (context[-(LIMIT - 1) :], [3, 4])])
    assert math.isclose(long.log_likelihood, short.log_likelihood, abs_tol=1e-5)
    assert score_tokens(MODEL, [([1], [2] * LIMIT)])[0].n_tokens == LIMIT
    with pytest.raises(ValueError, match=r"pair 1 has 9 tokens, .*max_seq_len\) is 8"):
        score_tokens(MODEL, [([1], [2]), ([1], [2] * (LIMIT + 1))])


def test_nothing_to_score_is_certain_and_nothing_before_is_refused():
    assert score_tokens(MODEL, [([1], []), ([2], [])]) == [Likelihood(0.0, 0, True)] * 2
    assert score_tokens(MODEL, []) == []
    with pytest.raises(ValueError, match="pair 0 has an empty context"):
        score_tokens(MODEL, [([], [1])])


def test_a_wide_vocabulary_goes_in_smaller_batches(monkeypatch):
    sizes = []
    whole = likelihood.score_batch
    monkeypatch.setattr(
        likelihood, "score_batch", lambda m, rows, n: sizes.append(len(rows)) or whole(m, rows, n)
    )
    monkeypatch.setattr(likelihood, "MAX_BYTES", 4 * 3 * 13 * 2)
    score_tokens(MODEL, [([1, 2], [3])] * 5, batch_size=4)
    assert sizes == [2, 2, 1]


def test_modes_come_back_and_broken_weights_are_said():
    model = make_model().train()
    model.blocks[0].eval()
    pairs = [([1, 2], [3, 4])] * 2
    first, second = score_tokens(model, pairs)
    assert first == second  # dropout is off
    assert model.training
    assert not model.blocks[0].training
    with torch.no_grad():
        model.lm_head.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="log-likelihood is nan"):
        score_tokens(model, pairs)
    with pytest.raises(ValueError, match="batch_size"):
        score_tokens(model, pairs, batch_size=0)
