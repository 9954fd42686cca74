"""The references of week 6's tokenizer against the tokenizer of this repository."""

import random

import pytest

from course.exercise import find, without_marks
from tokenization.bpe import PairTable, learn_merges, merge_pair
from tokenization.stream_decoder import StreamDecoder

TEXTS = [
    "low low lower lowest, the lowest of all",
    "明月明月，举头望明月；低头思故乡。",
    "aaa aaaa aaaaa",
    "emoji 🌕🌕🌕 and é",
]


def reference(name):
    """The functions of a reference solution."""
    space = {}
    exec(compile(without_marks(find(name).solution), name, "exec"), space)
    return space


def smallest_first(name):
    """The same trainer with the tie rule of this book, the convention BPE-28."""
    source = without_marks(find(name).solution)
    ours = "best = min(counts, key=lambda pair: (-counts[pair], pair))"
    changed = source.replace("best = max(counts, key=lambda pair: counts[pair])", ours)
    assert changed != source
    space = {}
    exec(compile(changed, name, "exec"), space)
    return space


@pytest.mark.parametrize("text", TEXTS)
def test_counting_and_merging(text):
    ids = reference("bpe.01")["to_bytes"](text)
    assert bytes(ids).decode("utf-8") == text
    counts = reference("bpe.02")["count_pairs"](ids)
    assert counts == dict(PairTable([ids], [1]).counts)
    for pair in counts:
        assert reference("bpe.03")["merge"](ids, pair, 300) == merge_pair(ids, pair, 300)


@pytest.mark.parametrize("text", TEXTS)
def test_training_with_the_same_tie_rule_learns_the_same(text):
    mine = smallest_first("bpe.04")["train_bpe"](text, 12)
    ours = [pair for pair, _ in learn_merges([list(text.encode("utf-8"))], [1], 256)]
    assert mine == ours[:12]


def test_training_on_pieces():
    pieces = {"low": 5, "lower": 2, "newest": 6, "widest": 3, "月光": 4}
    words = [list(piece.encode("utf-8")) for piece in pieces]
    ours = [pair for pair, _ in learn_merges(words, list(pieces.values()), 256)]
    assert smallest_first("bpe.09")["train_pieces"](pieces, 10) == ours[:10]


@pytest.mark.parametrize("text", TEXTS)
def test_round_trip_and_streaming(text):
    merges = reference("bpe.04")["train_bpe"]("".join(TEXTS), 30)
    ids = reference("bpe.05")["encode"](text, merges)
    assert len(ids) < len(text.encode("utf-8"))
    decode, stream = reference("bpe.06")["decode"], reference("bpe.07")["stream"]
    assert decode(ids, merges) == text
    spelled = [bytes([byte]) for byte in range(256)]
    for left, right in merges:
        spelled.append(spelled[left] + spelled[right])
    cut = random.Random(0).randrange(1, len(ids))
    for part in (ids, ids[:cut]):
        ours = StreamDecoder(spelled.__getitem__)
        shown = [ours.push(token) for token in part] + [ours.flush()]
        assert stream([spelled[token] for token in part]) == shown
        assert "".join(shown) == decode(part, merges)


def test_the_whole_text_as_one_token():
    assert reference("bpe.04")["train_bpe"]("abab", 9) == [(97, 98), (256, 256)]


def test_the_predicted_numbers():
    answers = reference("bpe.08")
    merges = reference("bpe.04")["train_bpe"]("a" * 8, 3)
    spelled = [bytes([byte]) for byte in range(256)]
    for left, right in merges:
        spelled.append(spelled[left] + spelled[right])
    assert answers["longest"] == max(map(len, spelled))
    assert answers["third_id"] == len(spelled) - 1
    assert answers["vocab_size"] == len(spelled) + 1000 - 3
    assert answers["n_bytes"] == len("明月a".encode())
    assert answers["n_pairs"] == PairTable([[97] * 5], [1]).counts[97, 97]
    assert answers["n_left"] == len(merge_pair([97] * 5, (97, 97), 256))
