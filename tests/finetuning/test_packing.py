"""Batches of conversations: padded or packed, the same loss and no leak."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finetuning.conversations import Conversation, Message, Pair
from finetuning.packing import LAYOUTS, ConversationBatches, pack
from finetuning.sft import encode
from gpt_model.config import GPTConfig
from gpt_model.model import GPT
from tokenization.tokenizer import Tokenizer
from training.accumulation import language_model_loss
from training.batch import IGNORE_INDEX

TEXT = "abcdefghij"
TOKENIZER = Tokenizer.characters([TEXT, "\n"])
PAIRS = [Pair("abc", "de"), Pair("a", "f"), Pair("hijab", "c"), Pair("ff", "gggg"), Pair("b", "a")]
MODERN = dict(position="rope", norm="rmsnorm", n_kv_heads=1)


def test_every_pair_once_in_each_epoch_in_an_order_of_its_own():
    batches = ConversationBatches(PAIRS, TOKENIZER, 2, 16, seed=3)
    seen = [number for index in range(50) for number in batches(index).window_ids]
    epochs = [seen[first : first + 5] for first in range(0, 100, 5)]
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 10


def test_a_batch_is_a_pure_function_of_seed_and_index():
    first, second = (ConversationBatches(PAIRS, TOKENIZER, 3, 16, seed=9) for _ in range(2))
    late = [second(index).window_ids for index in (7, 2, 5)]
    assert late == [first(index).window_ids for index in (7, 2, 5)]
    other = ConversationBatches(PAIRS, TOKENIZER, 3, 16, seed=10)
    assert any(other(index).window_ids != first(index).window_ids for index in range(4))
    with pytest.raises(ValueError, match="index must be an integer >= 0, got -1"):
        first(-1)


def test_an_epoch_is_ordered_once_not_for_every_row(monkeypatch):
    batches = ConversationBatches(PAIRS, TOKENIZER, 2, 16, seed=3)
    expected = [batches(index).window_ids for index in range(5)]
    fresh = ConversationBatches(PAIRS, TOKENIZER, 2, 16, seed=3)
    sort, sorted_ones = np.argsort, []
    monkeypatch.setattr(
        np, "argsort", lambda *given, **how: sorted_ones.append(1) or sort(*given, **how)
    )
    assert [fresh(index).window_ids for index in range(5)] == expected
    assert len(sorted_ones) == 2  # ten rows are two epochs of five


def test_rows_are_the_pairs_padded_on_the_right():
    batch = ConversationBatches(PAIRS, TOKENIZER, 5, 16)(0)
    assert batch.inputs.shape == batch.targets.shape == (5, 6)
    for row, number in enumerate(batch.window_ids):
        inputs, targets = encode(PAIRS[number], TOKENIZER)
        assert batch.inputs[row, : len(inputs)].tolist() == inputs
        assert batch.targets[row, : len(targets)].tolist() == targets
        assert (batch.targets[row, len(targets) :] == IGNORE_INDEX).all()
    assert batch.inputs.dtype == batch.targets.dtype == torch.int64
    assert batch.n_targets == sum(len(pair.answer) + 1 for pair in PAIRS)


def test_padding_changes_neither_loss_nor_gradient():
    model = GPT(
        GPTConfig(vocab_size=TOKENIZER.vocab_size, max_seq_len=16, dim=16, n_layers=2, n_heads=2)
    )

    def gradients(batches):
        model.zero_grad()
        loss = sum(model(b.inputs, b.targets, reduction="sum").loss for b in batches)
        loss.backward()
        return loss.detach(), [parameter.grad.clone() for parameter in model.parameters()]

    together = gradients([ConversationBatches(PAIRS, TOKENIZER, 5, 16)(0)])
    alone = gradients([ConversationBatches([pair], TOKENIZER, 1, 16)(0) for pair in PAIRS])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_a_held_out_pass_visits_each_pair_once_in_order():
    batches = list(ConversationBatches(PAIRS, TOKENIZER, 2, 16).once())
    assert [batch.window_ids for batch in batches] == [(0, 1), (2, 3), (4,)]


def test_too_long_is_refused_or_skipped_never_cut():
    with pytest.raises(
        ValueError, match=r"2 of 5 conversations .* max_length 5 tokens \(the longest: 6\)"
    ):
        ConversationBatches(PAIRS, TOKENIZER, 2, 5)
    batches = ConversationBatches(PAIRS, TOKENIZER, 2, 5, too_long="skip")
    assert (len(batches), batches.n_skipped) == (3, 2)
    assert [batch.window_ids for batch in batches.once()] == [(0, 1), (4,)]
    with pytest.raises(ValueError, match=r"no conversation is left of 5: max_length is 1 "):
        ConversationBatches(PAIRS, TOKENIZER, 2, 1, too_long="skip")
    with pytest.raises(ValueError, match="too_long must be one of refuse, skip"):
        ConversationBatches(PAIRS, TOKENIZER, 2, 5, too_long="cut")


@given(st.lists(st.integers(1, 20), max_size=40), st.integers(20, 50))
def test_packing_holds_each_once_within_the_capacity(lengths, capacity):
    rows = pack(lengths, capacity)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    sums = [sum(lengths[index] for index in row) for row in rows]
    assert all(0 < total <= capacity for total in sums)
    # no two rows could have been one: the least that a packing must do
    assert all(a + b > capacity for i, a in enumerate(sums) for b in sums[:i])


def test_packing_is_near_the_best():
    lengths = [7, 7, 6, 6, 4, 4, 3, 3] * 25
    assert len(pack(lengths, 10)) == sum(lengths) // 10


def talk(*texts):
    roles = ("user", "assistant")
    return Conversation(tuple(Message(roles[n % 2], text) for n, text in enumerate(texts)))


def tiny(**changes):
    torch.manual_seed(0)
    config = GPTConfig(
        vocab_size=TOKENIZER.vocab_size, max_seq_len=300, dim=16, n_layers=2, n_heads=2,
        init_std=0.3, **changes,
    )  # fmt: skip
    return GPT(config)


def gradients(model, batches):
    """The sum of the losses and of their gradients; the count of the targets."""
    model.zero_grad()
    total, n_targets = 0.0, 0
    for batch in batches:
        loss, count = language_model_loss(model, batch)
        loss.backward()
        total, n_targets = total + loss.detach(), n_targets + count
    return total, torch.cat([p.grad.flatten() for p in model.parameters()]), n_targets


TALKS = [
    talk("ab", "cd", "e", "fghij"), talk("a", "b"), talk("jihgfe", "a", "b", "c", "d", "e"),
    *(Pair(TEXT[: n % 9 + 1], TEXT[n % 4 :]) for n in range(20)),
]  # fmt: skip


@pytest.mark.parametrize("length", [24, 260], ids=["masked", "in-runs"])
@pytest.mark.parametrize(
    "changes", [{}, {**MODERN, "token_shift": True}], ids=["learned", "rope-shift"]
)
def test_every_layout_is_the_sum_of_the_separate_losses(changes, length):
    model = tiny(**changes)
    alone = [next(ConversationBatches([one], TOKENIZER, 1, 300).once()) for one in TALKS]
    loss, gradient, count = gradients(model, alone)
    for layout in LAYOUTS:
        batches = ConversationBatches(TALKS, TOKENIZER, 2, length, layout=layout)
        found = gradients(model, batches.once())
        assert found[2] == count
        assert abs(found[0] - loss) < 1e-5 * loss, layout
        assert (found[1] - gradient).norm() < 1e-5 * gradient.norm(), layout


@pytest.mark.parametrize("length", [40, 260], ids=["masked", "in-runs"])
@pytest.mark.parametrize("changes", [{}, MODERN], ids=["learned", "rope"])
def test_no_conversation_sees_another(changes, length):
    """The gradient of one's loss at the embeddings of all others is exactly zero."""
    model = tiny(**changes)
    batch = ConversationBatches(TALKS, TOKENIZER, 1, length, layout="packed")(0)
    outputs = []
    model.token_embedding.register_forward_hook(lambda *call: outputs.append(call[2]))
    names = set(batch.document_ids.flatten().tolist()) - {0}
    assert len(names) > 2
    for name in names:
        mine = batch.document_ids == name
        loss = model(
            batch.inputs,
            batch.targets.where(mine, torch.tensor(IGNORE_INDEX)),
            document_ids=batch.document_ids,
            positions=batch.positions,
            reduction="sum",
        ).loss
        (slope,) = torch.autograd.grad(loss, outputs[-1])
        assert slope[mine].abs().max() > 0
        assert slope[~mine].abs().max() == 0


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(TEXT, min_size=1, max_size=6), min_size=2, max_size=12), st.integers(0, 5))
def test_every_conversation_once_in_each_epoch_packed(texts, seed):
    pairs = [Pair(text, text[::-1]) for text in texts]
    batches = ConversationBatches(pairs, TOKENIZER, 2, 14, seed=seed, layout="packed")
    n_rows = len(batches.rows)
    seen = [batches(index) for index in range(n_rows)]  # two epochs: two rows a batch
    numbers = sorted(number for batch in seen for number in batch.window_ids)
    assert numbers == sorted([*range(len(pairs))] * 2)
    for batch in seen:
        for row in range(len(batch.inputs)):
            real = batch.document_ids[row] > 0
            starts = batch.positions[row][real] == 0
            assert batch.document_ids[row][real].diff(prepend=torch.zeros(1)).eq(1).equal(starts)


def test_left_padding_ends_every_row_with_the_last_answer():
    batch = ConversationBatches(PAIRS, TOKENIZER, 5, 16, layout="left")(0)
    assert batch.targets[:, -1].tolist() == [TOKENIZER.end_id] * 5
    assert (batch.positions[:, -1] == (batch.document_ids > 0).sum(1) - 1).all()


def test_an_unknown_layout_is_refused():
    with pytest.raises(ValueError, match="layout must be one of right, left, packed"):
        ConversationBatches(PAIRS, TOKENIZER, 2, 16, layout="middle")
