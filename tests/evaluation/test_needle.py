"""The needle is where it is said to be, and the score counts what it claims."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.needle import (
    METHODS,
    NeedleTask,
    draw,
    needle_scores,
    score,
    small_retriever,
    table,
    train_retriever,
)
from gpt_model.config import preset
from gpt_model.model import GPT, GPTOutput
from training.batch import IGNORE_INDEX

TASK = NeedleTask(n_filler=5, n_keys=4, n_values=3)  # 0–4 filler, 5–8 keys, 9–11 values, 12, 13
NOTE, ASK = 12, 13


def found_pairs(row):
    """Every "note k v" in a list of ids: {key: (place of the note, value)}."""
    return {row[i + 1]: (i, row[i + 2]) for i in range(len(row) - 2) if row[i] == NOTE}


@given(
    length=st.integers(17, 60),
    depth=st.sampled_from([0.0, 0.3, 1.0]),
    n_needles=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_questions_ask_the_needle_at_the_depth(length, depth, n_needles, seed):
    generator = torch.Generator().manual_seed(seed)
    ids, answers = TASK.questions(3, length, depth, generator, n_needles)
    assert ids.shape == (3, length)
    room = (length - 2) // 3
    for row, answer in zip(ids.tolist(), answers.tolist(), strict=True):
        assert row[-2] == ASK
        pairs = found_pairs(row[:-2])
        assert len(pairs) == n_needles  # no key twice
        place, value = pairs[row[-1]]
        assert value == answer
        assert place == (length - 2) - 3 * room + 3 * round(depth * (room - 1))
        assert row.count(ASK) == 1


@given(length=st.integers(24, 60), seed=st.integers(0, 99))
def test_training_asks_every_key_and_labels_only_values(length, seed):
    generator = torch.Generator().manual_seed(seed)
    inputs, targets = TASK.training_batch(2, length, generator)
    for row, labels in zip(inputs.tolist(), targets.tolist(), strict=True):
        pairs = found_pairs(row)
        assert sorted(pairs) == [5, 6, 7, 8]
        asked = [i for i, label in enumerate(labels) if label != IGNORE_INDEX]
        assert sorted(row[i] for i in asked) == [5, 6, 7, 8]
        for i in asked:
            assert row[i - 1] == ASK
            assert labels[i] == pairs[row[i]][1]


def test_texts_too_short_for_their_needles_are_refused():
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match="4 needles of 3 tokens do not fit into 11 tokens"):
        TASK.training_batch(1, 22, generator)
    with pytest.raises(ValueError, match="n_needles must be an integer >= 1 and <= 4, got 5"):
        TASK.questions(1, 40, 0.5, generator, 5)
    with pytest.raises(ValueError, match="depth must be"):
        TASK.questions(1, 40, 1.5, generator)


class Oracle(GPT):
    """Looks the key up; only the newest `sight` tokens are there for it."""

    sight = 10**9

    def forward(self, ids, **options):
        logits = torch.zeros(len(ids), 1, TASK.vocab_size)
        for row, found in zip(ids.tolist(), logits, strict=True):
            _, value = found_pairs(row[-self.sight : -2]).get(row[-1], (0, 0))
            found[0, value] = 1.0
        return GPTOutput(logits, None)


def test_the_score_is_the_share_of_right_answers():
    model = Oracle(preset("modern-micro", vocab_size=TASK.vocab_size, max_seq_len=40, n_layers=1))
    config = model.config
    for method in METHODS[:-1]:
        assert score(model, TASK, 80, 0.5, method, n_texts=9) == 1.0
    model.sight = 20
    assert score(model, TASK, 80, 1.0, "none", n_texts=9) == 1.0
    assert score(model, TASK, 80, 0.0, "none", n_texts=9) == 0.0
    assert model.config == config  # opened longer, and closed again
    with pytest.raises(
        ValueError, match="method must be one of none, linear.*sliding; got 'slide'"
    ):
        score(model, TASK, 80, 0.0, "slide")


@pytest.fixture(scope="module")
def trained():
    return small_retriever()


def test_a_model_trained_here_passes_in_its_window_and_forgets_beyond_the_sliding_one(trained):
    """The claims of the lesson, at every depth; beyond the window only what must hold."""
    model, task = trained
    scores = needle_scores(model, task, [32, 64, 256], [0.0, 0.5, 1.0], n_texts=24)
    assert set(scores) == set(METHODS)
    for method in ("none", "dynamic", "sliding"):
        assert min(scores[method][32] + scores[method][64]) > 0.9
    assert max(scores["sliding"][256][:2]) < 0.5  # gone, whatever the depth
    assert scores["sliding"][256][2] > 0.9
    assert sum(scores["none"][256]) < sum(scores["yarn"][256])
    # opened at the length itself, the static change of base is the dynamic one
    ntk = [score(model, task, 256, depth, "ntk", n_texts=24) for depth in (0.0, 0.5, 1.0)]
    assert ntk == scores["dynamic"][256]


def test_training_is_repeatable():
    first, second = (train_retriever(TASK, 40, steps=3, dim=32, n_layers=1) for _ in range(2))
    for left, right in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(left, right)
    assert not first.training


@settings(max_examples=3)
@given(n_methods=st.integers(1, 3))
def test_table_and_picture(n_methods, tmp_path_factory):
    scores = {name: {32: [1.0, 0.5], 64: [0.0, 0.0]} for name in METHODS[:n_methods]}
    lines = table(scores, 32).splitlines()
    assert len(lines) == 1 + n_methods
    assert lines[0].split() == ["method", "1×", "2×"]
    assert lines[1].split() == ["none", "75%", "0%"]
    path = tmp_path_factory.mktemp("needle") / "scores.png"
    draw(scores, [0.0, 1.0], 32, path)
    assert path.read_bytes().startswith(b"\x89PNG")
