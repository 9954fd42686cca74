"""transformers' logits warpers are the oracle; hypothesis and slow Python look for the edges."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from inference.drawing import check_scores
from inference.penalties import History
from inference.sampling import (
    MinP,
    SamplingParams,
    Temperature,
    TopK,
    TopP,
    best_tokens,
    sample_next,
)

# Few distinct values: ties everywhere, and some tokens forbidden.
tied_rows = st.lists(
    st.sampled_from([-math.inf, -2.0, -1.0, 0.0, 0.5, 3.0]), min_size=1, max_size=12
).filter(lambda row: max(row) > -math.inf)


def kept(logits):
    return [token for token, value in enumerate(logits[0].tolist()) if value > -math.inf]


def ranking(row):
    """Token ids, best first; ties by the lowest id."""
    return sorted(range(len(row)), key=lambda token: (-row[token], token))


def probabilities(row):
    best = max(row)
    weights = [math.exp(value - best) for value in row]
    return [weight / sum(weights) for weight in weights]


@pytest.mark.parametrize("temperature", [0.1, 0.7, 1.5, 30.0])
def test_temperature_equals_transformers(temperature):
    logits = torch.randn(3, 50) * 5
    expected = TemperatureLogitsWarper(temperature)(None, logits)
    actual = Temperature(temperature)(logits)
    torch.testing.assert_close(actual.softmax(-1), expected.softmax(-1))
    assert actual.amax(-1).tolist() == [0.0] * 3


@pytest.mark.parametrize("k", [1, 2, 40, 49, 50, 51, 10_000])
def test_top_k_equals_transformers_without_ties(k):
    logits = torch.randn(3, 50)
    expected = TopKLogitsWarper(k)(None, logits)
    assert torch.equal(TopK(k)(logits), expected)


@pytest.mark.parametrize("p", [1e-9, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("scale", [0.1, 1.0, 8.0])
@pytest.mark.parametrize("vocab_size", [50, 3_000])
def test_top_p_equals_transformers_without_ties(p, scale, vocab_size):
    logits = torch.randn(4, vocab_size) * scale
    expected = TopPLogitsWarper(p)(None, logits)
    actual = TopP(p)(logits)
    differing = (actual != expected).sum(-1)
    # theirs adds 3,000 float32 numbers from below: at most a token at the border may differ
    assert differing.max() <= (0 if vocab_size == 50 else 1)


def test_top_p_looks_further_when_the_first_hundreds_do_not_reach_p():
    logits = torch.zeros(1, 4_000)
    logits[0, 7] = 0.5
    wanted = math.ceil((0.9 * (3_999 + math.exp(0.5)) - math.exp(0.5)) - 1e-6) + 1
    assert len(kept(TopP(0.9)(logits))) == wanted > TopP.FIRST
    assert kept(TopP(0.9)(logits))[-1] == wanted - 1  # the lowest ids of the tied ones


@pytest.mark.parametrize("min_p", [0.01, 0.1, 0.5, 0.99])
def test_min_p_equals_transformers(min_p):
    logits = torch.randn(5, 50) * 3
    assert torch.equal(MinP(min_p)(logits), MinPLogitsWarper(min_p)(None, logits))


@given(row=tied_rows, k=st.integers(1, 14))
def test_top_k_keeps_exactly_the_k_best_with_the_lowest_ids(row, k):
    expected = [token for token in ranking(row)[:k] if row[token] > -math.inf]
    assert kept(TopK(k)(torch.tensor([row]))) == sorted(expected)


@given(row=tied_rows, p=st.floats(1e-12, 1.0))
def test_top_p_keeps_the_smallest_set_that_reaches_p(row, p):
    order, chances = ranking(row), probabilities(row)
    wanted, mass = [], 0.0
    for token in order:
        if wanted and mass >= p - 1e-12:
            break
        wanted.append(token)
        mass += chances[token]
    wanted = sorted(token for token in wanted if row[token] > -math.inf)
    assert kept(TopP(p)(torch.tensor([row]))) == wanted


@given(row=tied_rows, min_p=st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_min_p_keeps_all_that_reach_its_share_of_the_best(row, min_p):
    chances = probabilities(row)
    wanted = [i for i, p in enumerate(chances) if p >= min_p * max(chances) * (1 - 1e-6) and p > 0]
    assert kept(MinP(min_p)(torch.tensor([row]))) == wanted


@given(rows=st.lists(tied_rows.map(lambda row: (row * 12)[:12]), min_size=1, max_size=4))
def test_every_row_is_treated_as_if_it_were_alone(rows):
    logits = torch.tensor(rows)
    for process in (Temperature(0.3), TopK(3), TopP(0.6), MinP(0.2)):
        alone = torch.cat([process(row[None]) for row in logits])
        assert torch.equal(process(logits), alone)


def test_processors_leave_their_input_alone():
    logits = torch.randn(2, 9)
    before = logits.clone()
    for process in (Temperature(0.3), TopK(3), TopP(0.6), MinP(0.2)):
        process(logits)
    assert torch.equal(logits, before)


def test_ten_equal_tokens_and_a_round_p():
    """0.1 ten times: rounding must not let an extra token in, nor keep one out."""
    logits = torch.zeros(1, 10)
    for count in range(1, 11):
        assert len(kept(TopP(count / 10)(logits))) == count


def test_extremes_keep_everything_or_the_best():
    logits = torch.tensor([[0.0, 2.0, 2.0, -90.0]])
    assert torch.equal(TopP(1.0)(logits), logits)
    assert torch.equal(MinP(0.0)(logits), logits)
    assert torch.equal(TopK(4)(logits), logits)
    assert kept(TopP(5e-324)(logits)) == [1]
    assert kept(MinP(1.0)(logits)) == [1, 2]
    one = torch.tensor([[-3.0]])
    for process in (TopK(1), TopP(0.5), MinP(1.0), Temperature(0.1)):
        assert kept(process(one)) == [0]


@pytest.mark.parametrize("temperature", [0.0, 1e-40, 5e-324])
def test_a_vanishing_temperature_is_greedy(temperature):
    params = SamplingParams(temperature=temperature, top_k=2, top_p=0.5)
    assert params.is_greedy
    assert params.processors() == []


@pytest.mark.parametrize("temperature", [1.2e-38, 1e-30, 1e-3])
def test_a_tiny_temperature_draws_the_best_without_nan(temperature):
    logits = torch.tensor([[1.0, 1.0 + 1e-6, -math.inf, 3e38]])
    scaled = Temperature(temperature)(logits)
    assert not scaled.isnan().any()
    assert {int(sample_next(scaled, keys=[key])) for key in range(20)} == {3}
    # A tie at the top stays a tie: both are drawn
    tie = Temperature(temperature)(torch.tensor([[2.0, 0.0, 2.0]]))
    assert {int(sample_next(tie, keys=[key])) for key in range(20)} == {0, 2}


def test_greedy_takes_the_lowest_id_of_a_tie():
    logits = torch.tensor([[0.0, 7.0, 7.0, -1.0], [5.0, 5.0, 5.0, 5.0]])
    assert sample_next(logits).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([-math.inf] * 3, r"row 1: every token is forbidden \(all scores are -inf\)"),
        ([0.0, math.nan, 1.0], "row 1: the model's scores hold nan; its weights are damaged"),
        ([0.0, math.inf, 1.0], "row 1: the model's scores hold inf"),
    ],
)
def test_useless_scores_are_refused(row, message):
    logits = torch.tensor([[0.0, 1.0, -math.inf], row])
    everything = SamplingParams(temperature=0.5, top_k=2, top_p=0.9, min_p=0.1).processors()
    for processors in ([], everything if math.inf not in row else []):
        for keys in (None, [1, 2]):
            with pytest.raises(ValueError, match=message):
                sample_next(logits, processors, None, keys)
    with pytest.raises(ValueError, match=message):
        check_scores(logits)


def test_processors_come_in_the_documented_order_and_only_when_they_act():
    assert SamplingParams().processors() == []
    params = SamplingParams(
        logit_bias={0: 1.0},
        repetition_penalty=1.2,
        presence_penalty=0.1,
        temperature=0.7,
        top_k=5,
        top_p=0.9,
        min_p=0.05,
    )
    names = [type(process).__name__ for process in params.processors()]
    assert names == [
        *("LogitBias", "RepetitionPenalty", "FrequencyPenalty"),
        *("Temperature", "TopK", "TopP", "MinP"),
    ]
    assert [type(p).__name__ for p in params.penalties()] == names[:3]
    frequency = SamplingParams(frequency_penalty=0.3).processors()
    assert [type(process).__name__ for process in frequency] == ["FrequencyPenalty"]


def test_order_matters_and_is_temperature_before_truncation():
    """Hot first, then top-p: more candidates than the other way round."""
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0, -1.0]])
    final = logits
    for process in SamplingParams(temperature=4.0, top_p=0.6).processors():
        final = process(final)
    assert kept(final) == kept(TopP(0.6)(logits / 4.0)) != kept(TopP(0.6)(logits))


def test_sample_next_passes_the_history_on():
    history = History([[1]], vocab_size=3)
    params = SamplingParams(temperature=0, repetition_penalty=3.0)
    logits = torch.tensor([[1.0, 2.0, 0.0]])
    assert int(sample_next(logits, params.processors(), history)) == 0


@given(row=tied_rows, n=st.integers(1, 14))
def test_best_tokens_are_sorted_with_ties_by_id(row, n):
    (found,) = best_tokens(torch.tensor([row]), n)
    finite = [(value, token) for value, token in found if value > -math.inf]
    wanted = [(row[token], token) for token in ranking(row)[:n] if row[token] > -math.inf]
    assert finite == wanted
    assert len(found) == min(n, len(row))
