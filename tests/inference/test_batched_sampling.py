"""The fast path of a batch against the written-out samplers, row by row; ties, growth, mixes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inference import batched_sampling
from inference.batched_sampling import BatchSampler, survivors
from inference.penalties import History
from inference.sampling import SamplingParams, sample_next

parameters = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    top_k=st.sampled_from([0, 1, 3, 40, 500]),
    top_p=st.sampled_from([1e-9, 0.3, 0.9, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 0.01, 0.5, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 0.7, 1.4]),
    presence_penalty=st.sampled_from([0.0, 0.6]),
    frequency_penalty=st.sampled_from([0.0, -0.4]),
    logit_bias=st.sampled_from([None, {3: 2.0}, {0: -math.inf, 2: -1.0}]),
)
keys_of = st.integers(-(2**63), 2**63 - 1)


def slowly(logits, params, history, key):
    """The definition, one row at a time."""
    own = None if params.is_greedy else [key]
    return int(sample_next(logits, params.processors(), history, own))


@settings(max_examples=150)
@given(
    rows=st.lists(st.tuples(parameters, keys_of), min_size=1, max_size=5),
    vocab_size=st.sampled_from([5, 70, 1_200, 5_000]),
    seed=st.integers(0, 99),
    scale=st.sampled_from([0.1, 2.0, 8.0]),
)
def test_a_mixed_batch_is_every_row_alone(rows, vocab_size, seed, scale):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(rows), vocab_size, generator=generator) * scale
    said = torch.randint(vocab_size, (len(rows), 4), generator=generator).tolist()
    history = History(said, [ids[:2] for ids in said], vocab_size=vocab_size)
    params, keys = zip(*rows, strict=True)
    found = BatchSampler(params).choose(logits, history, keys).tolist()
    for row in range(len(rows)):
        alone = History([said[row]], [said[row][:2]], vocab_size=vocab_size)
        own = logits[row : row + 1]
        assert found[row] == slowly(own, params[row], alone, keys[row])
        assert found[row] == int(
            BatchSampler(params[row : row + 1]).choose(own, alone, [keys[row]])
        )


tied = st.lists(
    st.lists(
        st.sampled_from([-math.inf, -2.0, -1.0, 0.0, 0.5, 3.0]), min_size=9, max_size=9
    ).filter(lambda row: max(row) > -math.inf),
    min_size=1,
    max_size=4,
)


@settings(max_examples=200)
@given(
    rows=tied, k=st.integers(0, 10), p=st.floats(1e-9, 1.0), key=keys_of, first=st.integers(1, 4)
)
def test_ties_go_to_the_lowest_ids_however_few_are_looked_at(rows, k, p, key, first):
    """Few distinct scores, and so few looked at first that it must look again."""
    logits = torch.tensor(rows).repeat(1, 30)  # 270 tokens: ties all over
    params = SamplingParams(top_k=k, top_p=p)
    before = batched_sampling.FIRST
    batched_sampling.FIRST = first
    try:
        found = BatchSampler([params] * len(rows)).choose(logits, keys=[key] * len(rows))
    finally:
        batched_sampling.FIRST = before
    for row in range(len(rows)):
        assert int(found[row]) == slowly(logits[row : row + 1], params, None, key)


def test_it_sorts_only_when_it_must(monkeypatch):
    looked = []
    topk = torch.Tensor.topk
    monkeypatch.setattr(
        torch.Tensor, "topk", lambda self, n, **k: looked.append(n) or topk(self, n, **k)
    )
    steep = -1.5 * torch.arange(1, 20_001).float().log()[None]
    flat = torch.linspace(1e-3, 0, 20_000)[None]
    for logits, params, wanted in (
        (steep, SamplingParams(top_k=40), [64]),
        (steep, SamplingParams(top_k=64), [65]),  # one more, to see whether it is tied
        (steep, SamplingParams(top_p=0.8), [64]),
        (steep, SamplingParams(min_p=0.01), [64]),
        (steep, SamplingParams(top_p=0.97), [64, 512]),
        (flat, SamplingParams(top_p=0.9), [64, 512, 20_000]),
    ):
        looked.clear()
        BatchSampler([params]).choose(logits, keys=[5])
        assert looked == wanted


def test_what_survives_is_exactly_what_the_lesson_keeps():
    logits = torch.randn(3, 4_000) * 2
    params = [
        SamplingParams(temperature=0.6, top_p=0.95),
        SamplingParams(top_k=30, top_p=0.5),
        SamplingParams(min_p=0.05),
    ]
    sampler = BatchSampler(params)
    values, tokens = survivors(logits, sampler._limits, sampler._widest)
    for row, one in enumerate(params):
        slow = logits[row : row + 1]
        for process in one.processors():
            slow = process(slow)
        wanted = slow.isfinite().nonzero()[:, 1].tolist()
        assert sorted(tokens[row][values[row].isfinite()].tolist()) == wanted


@settings(max_examples=60)
@given(data=st.data(), rows=st.lists(parameters, min_size=2, max_size=6))
def test_rows_that_leave_or_change_places_change_nothing(data, rows):
    logits = torch.randn(len(rows), 300)
    keys = list(range(len(rows)))
    history = History([[1, 2]] * len(rows), vocab_size=300)
    sampler = BatchSampler(rows)
    before = sampler.choose(logits, history, keys).tolist()
    order = data.draw(st.permutations(range(len(rows))))
    order = order[: data.draw(st.integers(1, len(rows)))]
    sampler.keep(order)
    history.keep(torch.tensor(order))
    after = sampler.choose(logits[order], history, [keys[row] for row in order]).tolist()
    assert after == [before[row] for row in order]


def test_one_set_of_parameters_serves_many_positions():
    """What speculative decoding asks for: several rows of scores of one text."""
    params = SamplingParams(temperature=0.7, top_k=5, frequency_penalty=0.3, logit_bias={4: 1.0})
    logits, keys = torch.randn(4, 50), [1, 2, 3, 4]
    history = History([[1]] * 4, [[2], [2, 3], [3, 3], []], vocab_size=50)
    found = BatchSampler([params]).choose(logits, history, keys)
    assert found.tolist() == BatchSampler([params] * 4).choose(logits, history, keys).tolist()


def test_bad_scores_are_named_by_row():
    params = [SamplingParams(), SamplingParams(top_k=2), SamplingParams(temperature=0)]
    for bad, message in (
        (math.nan, "row 1: the model's scores hold nan"),
        (-math.inf, "row 1: ev"),
    ):
        logits = torch.zeros(3, 6)
        logits[1] = bad
        with pytest.raises(ValueError, match=message):
            BatchSampler(params).choose(logits, keys=[5] * 3)
