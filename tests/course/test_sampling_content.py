"""The references of week 5's sampling against the engine of this repository."""

import itertools
import math
import random

import pytest
import torch

from course.exercise import find, without_marks
from inference.beam_search import beam_search
from inference.drawing import laid_out
from inference.penalties import History, RepetitionPenalty
from inference.sampling import MinP, SamplingParams, Temperature, TopK, TopP, sample_next


def reference(name):
    """The functions of a reference solution."""
    space = {}
    exec(compile(without_marks(find(name).solution), name, "exec"), space)
    return space


@pytest.fixture
def logits():
    torch.manual_seed(5)
    return 3 * torch.randn(6, 40, dtype=torch.float64)


@pytest.mark.parametrize("tau", [0.3, 1.0, 2.5])
def test_temperature(logits, tau):
    mine = reference("sampling.01")["apply_temperature"](logits, tau)
    theirs = Temperature(tau)(logits)
    torch.testing.assert_close(mine.softmax(-1), theirs.softmax(-1))


def test_temperature_zero_is_greedy(logits):
    mine = reference("sampling.01")["apply_temperature"](logits, 0)
    assert mine.softmax(-1).max(-1).values.tolist() == [1.0] * 6
    assert torch.equal(mine.argmax(-1), sample_next(logits))


@pytest.mark.parametrize(
    ("name", "function", "processor", "values"),
    [
        ("sampling.02", "top_k", TopK, (1, 7, 39, 40, 99)),
        ("sampling.03", "top_p", TopP, (0.01, 0.4, 0.9, 0.999)),
        ("sampling.04", "min_p", MinP, (0.0, 0.05, 0.5, 1.0)),
    ],
)
def test_filters(logits, name, function, processor, values):
    for value in values:
        mine = reference(name)[function](logits, value)
        assert torch.equal(mine, processor(value)(logits)), value


def test_repetition_penalty(logits):
    seen = [[row, 3, row, 5 + row] for row in range(6)]
    mine = reference("sampling.05")["repetition_penalty"](logits, seen, 1.3)
    theirs = RepetitionPenalty(1.3)(logits, History(seen, vocab_size=40))
    torch.testing.assert_close(mine, theirs)


def test_draw(logits):
    u = torch.linspace(0, 0.999999, 60, dtype=torch.float64)
    rows = logits[0].expand(60, -1)
    mine = reference("sampling.06")["draw"](rows.softmax(-1), u)
    assert torch.equal(mine, laid_out(rows, u))


def test_the_whole_chain(logits):
    mine = reference("sampling.10")["next_probabilities"](logits[0], [1, 7, 1], 1.4, 0.8, 0.9)
    params = SamplingParams(repetition_penalty=1.4, temperature=0.8, top_p=0.9)
    scores, history = logits[:1], History([[1, 7, 1]], vocab_size=40)
    for step in params.processors():
        scores = step(scores, history)
    torch.testing.assert_close(mine, scores[0].softmax(-1))


class Tree:
    """What our beam search wants of a model, over the exercise's stand-in."""

    def __init__(self, next_log_probs, start):
        self.next_log_probs, self.rows = next_log_probs, [list(start)]

    def next_logits(self):
        return torch.stack([self.next_log_probs(ids) for ids in self.rows])

    def keep(self, rows):
        self.rows = [list(self.rows[row]) for row in rows]

    def append(self, tokens):
        for ids, token in zip(self.rows, tokens, strict=True):
            ids.append(token)


@pytest.mark.parametrize("case", range(4))
def test_beam_search(case):
    exercise = find("sampling.08")
    inputs = exercise.inputs(random.Random(case), case)
    mine = reference("sampling.08")["beam_search"](**inputs)
    start = inputs["start"]
    theirs = beam_search(
        Tree(inputs["next_log_probs"], start),
        num_beams=inputs["width"],
        max_new_tokens=inputs["n_steps"],
        is_finished=lambda ids: False,
        length_penalty=0.0,
    )
    assert [ids for ids, _ in mine] == [[*start, *found.ids] for found in theirs]
    assert [total for _, total in mine] == pytest.approx([found.total for found in theirs])


def test_a_beam_as_wide_as_the_tree_is_exhaustive():
    inputs = find("sampling.08").inputs(random.Random(1), 0)
    steps, log_probs, start = inputs["n_steps"], inputs["next_log_probs"], inputs["start"]
    vocabulary = len(log_probs(start))
    totals = {}
    for path in itertools.product(range(vocabulary), repeat=steps):
        ids = [*start, *path]
        totals[tuple(ids)] = sum(
            float(log_probs(ids[:i])[ids[i]]) for i in range(len(start), len(ids))
        )
    inputs["width"] = vocabulary**steps
    (best, total), *_ = reference("sampling.08")["beam_search"](**inputs)
    assert tuple(best) == max(totals, key=totals.get)
    assert math.isclose(total, max(totals.values()))
