import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from transformer_basics.embeddings import TokenEmbedding
from transformer_basics.previous_token import (
    BigramEmbedding,
    TokenShift,
    pair_rows,
    previous_ids,
)

texts = st.lists(st.integers(0, 6), min_size=1, max_size=5)


def by_hand(text):
    return [-1, *text[:-1]]


@given(st.lists(texts, min_size=1, max_size=4), st.integers(0, 12))
def test_left_padded_chunks_equal_each_row_alone(rows, cut):
    longest = max(map(len, rows))
    ids = torch.tensor([[9] * (longest - len(row)) + row for row in rows])
    real = torch.tensor([[False] * (longest - len(row)) + [True] * len(row) for row in rows])
    cut = min(cut, longest - 1)
    found = previous_ids(ids[:, cut:], ids[:, cut - 1 : cut] if cut else None, real)
    for row, line in zip(rows, found.tolist(), strict=True):
        wanted = by_hand(row)[-len(line) :]
        assert line[len(line) - len(wanted) :] == wanted


@given(st.lists(texts, min_size=1, max_size=4))
def test_packed_documents_equal_each_alone(documents):
    ids = torch.tensor([[token for text in documents for token in text]])
    numbers = torch.tensor([[n for n, text in enumerate(documents) for _ in text]])
    found = previous_ids(ids, document_ids=numbers)[0].tolist()
    assert found == [token for text in documents for token in by_hand(text)]


def test_the_shift_adds_the_weighted_neighbour():
    embedding, shift = TokenEmbedding(5, 3), TokenShift(3)
    with torch.no_grad():
        embedding.weight.normal_()
        shift.weight.copy_(torch.tensor([0.5, 0.0, -2.0]))
    ids = torch.tensor([[4, 1, 0]])
    found = shift(embedding(ids), previous_ids(ids), embedding)
    table = embedding.weight
    assert torch.equal(found[0, 0], table[4])
    assert torch.allclose(found[0, 1], table[1] + shift.weight * table[4])
    assert torch.allclose(found[0, 2], table[0] + shift.weight * table[1])
    found[0, 0].sum().backward()  # nothing was before: no gradient into w or into token 0
    assert shift.weight.grad.abs().max() == 0
    assert embedding.weight.grad[0].abs().max() == 0


def test_a_large_enough_table_gives_every_pair_its_own_row():
    pairs = [(previous, token) for previous in range(-1, 5) for token in range(5)]
    previous, ids = (torch.tensor(column) for column in zip(*pairs, strict=True))
    assert sorted(pair_rows(previous, ids, 5, 30).tolist()) == list(range(30))
    assert sorted(pair_rows(previous, ids, 5, 99).tolist()) == list(range(30))
    hashed = pair_rows(previous, ids, 5, 29)
    assert 0 <= hashed.min()
    assert hashed.max() < 29


@pytest.mark.parametrize("vocab_size", [65, 50257, 262_144])
def test_hashing_spreads_evenly_and_never_overflows(vocab_size):
    rows = 256
    previous, ids = torch.randint(-1, vocab_size, (2, 64 * rows))
    found = pair_rows(previous, ids, vocab_size, rows)
    assert 0 <= found.min()
    assert found.max() < rows
    counts = found.bincount(minlength=rows)
    assert counts.min() > 20  # 64 on average, standard deviation 8
    assert counts.max() < 120
    # python's integers know no overflow
    for p, i, row in list(zip(previous.tolist(), ids.tolist(), found.tolist(), strict=True))[:50]:
        number = (p + 1) * vocab_size + i
        assert row == number % 4_294_967_291 * 1_640_531_527 % 4_294_967_291 % rows


def test_the_table_depends_on_both_tokens_in_order():
    table = BigramEmbedding(30, 5, 4)
    torch.nn.init.normal_(table.weight)
    ids = torch.tensor([[1, 2, 1, 2, 1]])
    found = table(ids, previous_ids(ids))[0]
    assert torch.equal(found[1], found[3])  # (1, 2) twice
    assert not torch.equal(found[1], found[2])  # (2, 1) is another pair
    assert not torch.equal(found[0], found[2])  # (nothing, 1) too


def test_sizes_are_checked():
    with pytest.raises(ValueError, match="bigram_rows must be an integer >= 1, got 0"):
        BigramEmbedding(0, 5, 4)
    with pytest.raises(ValueError, match="dim must be an integer >= 1, got 0"):
        TokenShift(0)
