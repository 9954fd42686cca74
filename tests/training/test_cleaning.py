"""Deduplication in a few bytes per document, and filters that say what they dropped and why."""

import random
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.files import read_manifest
from tokenization.tokenizer import Tokenizer
from training import seen_texts
from training.cleaning import Cleaner, Cleaning
from training.documents import Document
from training.prepare import prepare_data
from training.seen_texts import SeenHashes, content_hash


def kept(texts, **rules):
    cleaner = Cleaner(Cleaning(**rules))
    found = [
        document.text for document in cleaner(Document(t, f"{i}") for i, t in enumerate(texts))
    ]
    return found, cleaner.report


NUMBERS = st.one_of(
    st.integers(1, 50),
    st.integers(1, 2**64 - 1),
    st.integers(2**64 - 50, 2**64 - 1),  # homes at the very end of the table
)


@settings(max_examples=80, deadline=None)
@given(st.lists(NUMBERS, max_size=3000))
def test_the_table_agrees_with_a_set(numbers):
    seen, oracle = SeenHashes(), set()
    for number in numbers:
        assert seen.add(number) == (number not in oracle)
        oracle.add(number)
    assert len(seen) == len(oracle)
    assert not any(seen.add(number) for number in oracle)


@pytest.mark.parametrize("top", [2**64 - 1, 5000, 2**63])
def test_many_numbers_and_many_collisions(monkeypatch, top):
    """Consecutive numbers share one home: the longest runs that can be."""
    monkeypatch.setattr(seen_texts, "BLOCK", 64)  # runs go across the blocks of a new table
    draw = random.Random(0)
    numbers = [*range(max(1, top - 2500), top), *(draw.getrandbits(64) or 1 for _ in range(3_000))]
    seen = SeenHashes()
    assert all(seen.add(number) for number in dict.fromkeys(numbers))
    assert not any(seen.add(number) for number in numbers)


def test_a_document_costs_at_most_sixteen_bytes():
    draw = random.Random(1)
    seen = SeenHashes()
    for count in range(1, 60_001):
        seen.add(draw.getrandbits(64) or 1)
        if count >= 20_000 and count % 5000 == 0:
            assert 8 <= seen.n_bytes / count <= 16
    numbers = [draw.getrandbits(64) or 1 for _ in range(60_000)]
    tracemalloc.start()
    try:
        seen = SeenHashes()
        for number in numbers:
            seen.add(number)
        size = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert size / len(numbers) <= 16.5


def test_duplicates_are_dropped_and_the_first_is_kept():
    texts = ["the cat", "a dog", "the  cat\r\n", "The cat", "caf\u00e9", "cafe\u0301", "a dog"]
    found, report = kept(texts, dedup=True)
    assert found == ["the cat", "a dog", "The cat", "caf\u00e9"]
    assert report.dropped == {"dedup": 3}
    assert report.kept == 4
    assert report.dropped_bytes["dedup"] == len("the  cat\r\n") + len("cafe\u0301".encode()) + 5


@settings(max_examples=50)
@given(st.lists(st.text("ab \n", max_size=4), max_size=60))
def test_dedup_agrees_with_brute_force(texts):
    oracle = {}
    for text in texts:
        oracle.setdefault(" ".join(text.split()), text)
    assert kept(texts, dedup=True)[0] == list(oracle.values())


@pytest.mark.parametrize(
    ("rules", "good", "bad", "measured"),
    [
        ({"min_chars": 3}, "abc", "ab", "2 characters"),
        ({"max_chars": 3}, "春眠不", "春眠不觉", "4 characters"),
        ({"max_symbol_share": 0.25}, "abc!", "ab!?", "50.0%"),
        ({"max_symbol_share": 0.0}, "春眠 नमस्ते\n٣", "春眠。", "33.3%"),
        ({"max_unprintable_share": 0.25}, "abc\ufffd", "ab\x00\ufffd", "50.0%"),
        ({"max_unprintable_share": 0.0}, "a\tb\r\n\u200d", "a\ue000", "50.0%"),
        ({"max_repeated_lines": 0.5}, "a\n\na\nb\n\n", "a\na\n a\nb", "50.0%"),
        ({"max_repeated_lines": 0.4}, "a\nb\n\n\n\n\nc", "a\na\nb\nb", "50.0%"),
    ],
)
def test_each_rule_drops_what_it_measures_and_says_so(rules, good, bad, measured):
    if "max_repeated_lines" in rules and rules["max_repeated_lines"] == 0.5:
        rules = {"max_repeated_lines": 0.49}
    assert kept([good], **rules)[0] == [good]
    found, report = kept([bad, good], **rules)
    assert found == [good]
    (rule,) = rules
    assert report.dropped == {rule: 1}
    assert report.examples[rule] == [f"0: {measured}: {bad!r}"]
    assert f"{rule}: dropped 1 of 2 documents" in report.lines()[0]
    assert kept([bad])[0] == [bad]  # nothing is dropped unless asked for


def test_a_share_on_the_limit_is_kept():
    assert kept(["ab!?"], max_symbol_share=0.5)[0] == ["ab!?"]
    assert kept(["a\na"], max_repeated_lines=0.5)[0] == ["a\na"]


def test_a_document_counts_for_its_first_fault_and_few_examples_are_kept():
    _, report = kept([f"!{'?' * 99}{i}" for i in range(50)], min_chars=200, max_symbol_share=0.1)
    assert report.dropped == {"min_chars": 50}
    assert len(report.examples["min_chars"]) == 3
    assert all(len(example) < 100 for example in report.examples["min_chars"])


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"min_chars": 0}, "min_chars must be an integer >= 1, got 0"),
        ({"min_chars": 9, "max_chars": 8}, "min_chars must be <= max_chars, got 9 and 8"),
        ({"max_symbol_share": 30}, "max_symbol_share must be a finite number >= 0.0 and <= 1.0"),
        ({"max_repeated_lines": float("nan")}, "max_repeated_lines must be a finite number"),
        ({"dedup": 1}, "dedup must be true or false"),
    ],
)
def test_wrong_limits_are_refused(rules, message):
    with pytest.raises(ValueError, match=message):
        Cleaning(**rules)


def test_a_prepared_corpus_is_cleaned_and_says_what_was_dropped(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for i in range(40):
        text = f"Page {i % 30} of the book about the cat.\n"
        (folder / f"{i:02}.txt").write_text(text, encoding="utf-8", newline="\n")
    (folder / "99.txt").write_text("§", encoding="utf-8")
    held_out = tmp_path / "val.txt"
    held_out.write_text("Page 7 of the book about the cat.", encoding="utf-8")
    new = tmp_path / "new.txt"
    new.write_text("A new page.", encoding="utf-8")
    rules = Cleaning(dedup=True, min_chars=5)
    options = {"validation": [held_out, new], "cleaning": rules}
    train, val = prepare_data(folder, "characters", tmp_path / "data", **options)
    with train, val:
        tokenizer = Tokenizer.load(tmp_path / "data")
        assert len(train.document_starts) == 30
        # what the training split has is no test for it
        assert tokenizer.decode(val.tokens.tolist(), skip_special=True) == "A new page."
        with pytest.raises(ValueError, match="'§'"):  # its alphabet is that of the kept texts
            tokenizer.encode("§")
    manifest = read_manifest(tmp_path / "data")
    assert manifest["cleaning"] == {"dedup": True, "min_chars": 5}
    assert manifest["cleaned"]["dropped"] == {"dedup": 11, "min_chars": 1}
    assert manifest["cleaned"]["kept"] == 31


def test_hashes_are_never_zero_and_stay_the_same():
    assert content_hash("the cat") == content_hash(" the\tcat") == 0x70A48CC5EA382E9B
