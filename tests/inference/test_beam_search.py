"""Beam search against trying every text, on languages small enough to try them all."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inference import beam_search as module
from inference.beam_search import Route, TableSteps, beam_search, best_possible
from inference.penalties import FrequencyPenalty, History, LogitBias, RepetitionPenalty

END = 0


class Language:
    """A model whose next scores depend on the whole text so far: a seeded random function."""

    def __init__(self, seed, vocab_size, sharpness=2.0):
        self.seed, self.vocab_size, self.sharpness = seed, vocab_size, sharpness
        self.rows = [()]
        self.widths = []

    def scores(self, text):
        number = self.seed
        for token in text:
            number = (number * 31 + token + 7) % 1_000_003
        generator = torch.Generator().manual_seed(number)
        return torch.randn(self.vocab_size, generator=generator) * self.sharpness

    def next_logits(self):
        self.widths.append(len(self.rows))
        return torch.stack([self.scores(row) for row in self.rows])

    def keep(self, rows):
        self.rows = [self.rows[row] for row in rows]

    def append(self, tokens):
        self.rows = [(*row, token) for row, token in zip(self.rows, tokens, strict=True)]


def every_text(language, length, penalty, end=END):
    """All texts that end with `end` or are `length` long, best first."""
    found = {}
    for ids in itertools.product(range(language.vocab_size), repeat=length):
        cut = ids[: ids.index(end) + 1] if end in ids else ids
        total = sum(
            float(language.scores(cut[:i]).log_softmax(-1)[token]) for i, token in enumerate(cut)
        )
        found[cut] = total / len(cut) ** penalty
    return sorted(found.items(), key=lambda item: -item[1])


def search(steps, num_beams, length, penalty=1.0, end=END, **options):
    return beam_search(
        steps,
        num_beams=num_beams,
        max_new_tokens=length,
        is_finished=lambda ids: ids[-1] == end,
        length_penalty=penalty,
        **options,
    )


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    vocab_size=st.integers(1, 4),
    length=st.integers(1, 4),
    penalty=st.sampled_from([-1.5, 0.0, 0.7, 1.0, 2.0]),
)
def test_wide_enough_beams_find_every_text_in_order(seed, vocab_size, length, penalty):
    language = Language(seed, vocab_size)
    found = search(Language(seed, vocab_size), vocab_size**length, length, penalty)
    wanted = every_text(language, length, penalty)
    assert [hypothesis.ids for hypothesis in found] == [ids for ids, _ in wanted]
    for hypothesis, (_, score) in zip(found, wanted, strict=True):
        assert hypothesis.score == pytest.approx(score, abs=1e-5)
        assert hypothesis.total == pytest.approx(score * len(hypothesis.ids) ** penalty, abs=1e-4)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    num_beams=st.integers(1, 4),
    penalty=st.sampled_from([-1.0, 0.0, 0.5, 1.0, 3.0]),
    sharpness=st.sampled_from([0.5, 2.0, 5.0]),
)
def test_stopping_early_changes_nothing(seed, num_beams, penalty, sharpness):
    """The bound is exact: going on to the last step would give the same list."""
    early = search(Language(seed, 4, sharpness), num_beams, 8, penalty)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "best_possible", lambda *_: math.inf)
        complete = search(Language(seed, 4, sharpness), num_beams, 8, penalty)
    assert early == complete


def test_stopping_early_happens():
    """A model that soon says END with certainty must not be asked 50 times."""
    table = torch.tensor([[1.0, 0.0, 0.0], [0.98, 0.01, 0.01], [0.5, 0.25, 0.25]])
    steps = TableSteps(table, start=1)
    asked = []
    original = steps.next_logits
    steps.next_logits = lambda: asked.append(1) or original()
    search(steps, 2, 50, penalty=0.0)
    assert len(asked) < 6


@given(
    total=st.floats(-50, -0.01),
    length=st.integers(1, 9),
    more=st.lists(st.floats(0, 5), min_size=1, max_size=9),
    penalty=st.sampled_from([-2.0, 0.0, 0.3, 1.0, 2.0]),
)
def test_no_continuation_beats_the_bound(total, length, more, penalty):
    """`more` are the -log p of the further steps, up to the last one allowed."""
    bound = best_possible(total, length, length + len(more), penalty)
    for steps in range(1, len(more) + 1):
        final = (total - sum(more[:steps])) / (length + steps) ** penalty
        assert final <= bound + 1e-9


@given(seed=st.integers(0, 10**6), length=st.integers(1, 6))
def test_one_beam_without_an_end_is_greedy(seed, length):
    language, greedy = Language(seed, 5), ()
    for _ in range(length):
        greedy = (*greedy, int(language.scores(greedy).argmax()))
    (found,) = search(Language(seed, 5), 1, length, end=None)
    assert found.ids == greedy


def test_ties_are_resolved_by_row_then_id():
    table = torch.full((4, 4), 0.25)
    found = search(TableSteps(table, start=3), 3, 2, end=None)
    assert [hypothesis.ids for hypothesis in found] == [(0, 0), (0, 1), (0, 2)]


def test_finished_beams_leave_their_place_to_living_ones():
    """Two of three beams end at once; three still go on, and the ended ones are not lost."""
    table = torch.tensor(
        [
            [1.0, 0.0, 0.0, 0.0, 0.0],
            [0.4, 0.3, 0.15, 0.1, 0.05],  # START = 1
            [0.0, 0.0, 0.4, 0.3, 0.3],
            [0.0, 0.0, 0.3, 0.4, 0.3],
            [0.0, 0.0, 0.3, 0.3, 0.4],
        ]
    )
    language = TableSteps(table, start=1)
    widths = []
    original = language.next_logits
    language.next_logits = lambda: widths.append(len(language.last)) or original()
    found = search(language, 3, 4, penalty=0.0)
    assert widths[0] == 1
    assert set(widths[1:]) == {3}
    assert found[0].ids == (0,)
    assert found[1].ids == (1, 0)
    assert found[0].total == pytest.approx(math.log(0.4))


def test_a_candidate_behind_the_first_beams_does_not_finish():
    """With one beam, END in second place is not taken: the better text goes on."""
    table = torch.tensor([[1.0, 0.0], [0.4, 0.6]])
    (found,) = search(TableSteps(table, start=1), 1, 3, penalty=0.0)
    assert found.ids == (1, 1, 1)  # 0.6³, though END first would have been 0.4


def test_length_penalty_prefers_longer_texts():
    table = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    lengths = [len(search(TableSteps(table, 1), 4, 6, alpha)[0].ids) for alpha in (-1.0, 0.0, 5.0)]
    assert lengths == sorted(lengths)
    assert lengths[0] == 1
    assert lengths[-1] == 6


def test_penalties_follow_their_own_beam():
    """A bonus-hungry table: without the frequency penalty it repeats, with it it must not."""
    table = torch.tensor([[0.34, 0.33, 0.33]] * 3)
    history = History([[0]], vocab_size=3)
    found = search(
        TableSteps(table, 0),
        9,
        3,
        end=None,
        processors=[FrequencyPenalty(frequency=50.0)],
        history=history,
    )
    assert sorted(hypothesis.ids for hypothesis in found[:6]) == sorted(
        itertools.permutations(range(3))
    )
    history = History([[0]], vocab_size=3)
    penalized = search(
        TableSteps(table, 0), 1, 1, end=None, processors=[RepetitionPenalty(9.0)], history=history
    )
    assert penalized[0].ids == (1,)  # 0 is in the prompt


def test_scores_are_those_of_the_penalized_distribution():
    table = torch.tensor([[0.5, 0.3, 0.2]] * 3)
    (found,) = search(
        TableSteps(table, 0), 1, 2, 0.0, end=None, processors=[LogitBias({0: -math.inf})]
    )
    assert found.ids == (1, 1)
    assert found.total == pytest.approx(2 * math.log(0.6))


def test_nothing_to_write_is_an_error():
    with pytest.raises(ValueError, match="every token is forbidden"):
        search(
            TableSteps(torch.tensor([[1.0]]), 0),
            1,
            2,
            processors=[LogitBias({0: -math.inf})],
        )
    with pytest.raises(ValueError, match="num_beams must be an integer >= 1, got 0"):
        search(Language(0, 2), 0, 2)
    with pytest.raises(ValueError, match="max_new_tokens must be an integer >= 1, got 0"):
        search(Language(0, 2), 2, 0)
    with pytest.raises(ValueError, match="length_penalty must be a finite number, got nan"):
        search(Language(0, 2), 2, 2, math.nan)


def test_impossible_routes_are_not_walked():
    """A table with a single way: the list is shorter than the beams, not filled with -inf."""
    table = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    found = search(TableSteps(table, 0), 2, 3, end=None)
    assert [hypothesis.ids for hypothesis in found] == [(1, 0, 1)]
    assert Route((1,), 0.0, 0).total == 0.0
