"""The references of week 6's data against the batches, packing and masks of this repository."""

import random

import pytest
import torch

from course.exercise import find, without_marks
from finetuning.conversations import Pair
from finetuning.packing import ConversationBatches
from gpt_model.inputs import build_mask
from tokenization.tokenizer import Tokenizer
from training.batch import IGNORE_INDEX, WindowReader
from training.dataset import sequential_batches


def reference(name):
    """The functions of a reference solution."""
    space = {}
    exec(compile(without_marks(find(name).solution), name, "exec"), space)
    return space


@pytest.mark.parametrize("n", [6, 7, 10, 11, 26, 27, 100])
def test_windows_cover_every_question_and_stay_inside(n):
    starts = reference("data.01")["windows"](torch.arange(n), 5)
    covered = {start + i + 1 for start in starts for i in range(5)}
    assert covered == set(range(1, n))
    assert len(starts) == len(set(starts)) == -(-(n - 1) // 5)
    ours = [batch.window_ids for batch in sequential_batches(torch.arange(n), 1, 5)]
    assert [*starts[:-1], min(ours[-1][0], n - 6)] == starts


def test_a_batch_is_ours():
    tokens, starts = torch.randint(0, 500, (90,)), torch.tensor([0, 41, 7, 83])
    x, y = reference("data.02")["batch"](tokens, starts, 6)
    ours = WindowReader(tokens.numpy()).read(starts.numpy(), 6)
    assert torch.equal(x, ours.inputs)
    assert torch.equal(y, ours.targets)
    order = torch.tensor([2, 0, 3, 1])
    pieces = reference("data.07")["epoch"](tokens, starts, order, 3, 6)
    assert [len(x) for x, _ in pieces] == [3, 1]
    assert torch.equal(torch.cat([x for x, _ in pieces]), ours.inputs[order])
    assert torch.equal(torch.cat([y for _, y in pieces]), ours.targets[order])


def test_a_split_does_not_leak():
    for case in range(3):
        inputs = find("data.03").inputs(random.Random(case), case)
        train, val = reference("data.03")["split"](**inputs)
        names = [document.strip() for document in inputs["documents"]]
        assert len(val) == inputs["n_val"]
        assert not {d.strip() for d in train} & {d.strip() for d in val}
        assert [d.strip() for d in (*train, *val)] == list(dict.fromkeys(names))


def test_padding_is_that_of_our_conversations():
    """Ours drops the last token from the inputs, where the exercise ignores its target."""
    tokenizer = Tokenizer.characters(["abcdefgh"])
    pairs = [Pair("ab", "cde"), Pair("f", "g"), Pair("abcd", "e")]
    batches = ConversationBatches(pairs, tokenizer, 3, 20, layout="right")
    ours = batches.collate(range(3))
    sequences = [[*one.inputs, one.targets[-1]] for one in batches.encoded]
    ids, targets = reference("data.04")["pad_batch"](sequences, batches.padding_id)
    assert sequences[0][-1] == batches.padding_id  # the end token is the pad as well
    real = ours.targets != IGNORE_INDEX
    assert torch.equal(ids[:, :-1], ours.inputs)
    assert torch.equal(targets[:, :-1][real], ours.targets[real])
    for row, s in enumerate(sequences):
        assert int((targets[row] != IGNORE_INDEX).sum()) == len(s) - 1


def test_packing_and_its_mask():
    pack, document_mask = reference("data.05")["pack"], reference("data.05")["document_mask"]
    ids, owners, positions = pack([[5, 6, 7], [8], [9, 4]], 0)
    assert ids == [5, 6, 7, 0, 8, 0, 9, 4, 0]
    alone = [pack([document], 0) for document in ([5, 6, 7], [8], [9, 4])]
    assert positions == [p for _, _, ps in alone for p in ps]
    mask = document_mask(torch.tensor(owners))
    ours = build_mask(len(ids), 0, None, torch.tensor([owners]), None)
    assert torch.equal(mask, ours.reshape(mask.shape))


def test_the_predicted_numbers():
    answers = reference("data.06")
    starts = reference("data.01")["windows"](torch.arange(1000), 64)
    assert answers["n_windows"] == len(starts)
    ids, targets = reference("data.04")["pad_batch"]([[1] * 9, [1] * 3, [1] * 2], 0)
    assert answers["n_counted"] == int((targets != IGNORE_INDEX).sum())
    assert answers["share_padded"] == pytest.approx(float((ids == 0).double().mean()))
    mask = reference("data.05")["document_mask"](torch.tensor([0, 0, 0, 1, 1]))
    assert answers["n_visible"] == int(mask.sum())
