"""The lesson learns and applies exactly the merges of the `tokenizers` library."""

import json
import pydoc_data.topics
import time
from collections import Counter
from itertools import pairwise

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenization.bpe import BytePairEncoding, PairTable, learn_merges, merge_pair
from tokenization.library_backend import train_byte_level_bpe
from tokenization.text_pieces import split_text

END = "<|endoftext|>"
POEM = "床前明月光，疑是地上霜。举头望明月，低头思故乡。"


def library(texts, vocab_size, special_tokens=(END,)):
    """Return the library's vocabulary, merges and tokenizer, without our Tokenizer in between."""
    text = train_byte_level_bpe(texts, vocab_size, special_tokens)
    model = json.loads(text)["model"]
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    built = tokenizers.Tokenizer.from_str(text)
    built.encode_special_tokens = True
    return model["vocab"], merges, built


def assert_equal_to_library(texts, vocab_size, others=(), special_tokens=(END,)):
    lesson = BytePairEncoding.train(texts, vocab_size, special_tokens)
    vocabulary, merges, built = library(texts, vocab_size, special_tokens)
    assert lesson.written_merges() == merges
    assert lesson.vocabulary() == vocabulary
    assert len(set(lesson.token_bytes)) == lesson.vocab_size  # every merge makes new bytes
    for text in (*texts, *others):
        ids = lesson.encode(text)
        assert ids == built.encode(text, add_special_tokens=False).ids
        assert lesson.decode(ids) == text


CORPORA = {
    "ties": ["ab cd ef gh", "ba dc fe hg"],
    "overlaps": ["aaa", "aaaa aaaaa", "a" * 24, "abab ababab", "abaabaaba"],
    "blanks": [" " * n for n in range(1, 17)] + ["\n" * 5, "\t\t x", " \n \n "],
    "chinese": [POEM, "低头思故乡，举头望明月", "明月明月明月"],
    "emoji": ["🙂🙂🙃", "👩‍👩‍👧‍👦 family", "🇨🇳🇨🇳", "❤️❤️"],
    "code": ["def f(x):\n    return x\n\n\ndef g(x):\n        return x ** 2\n"] * 2,
    "bytes": ["\x00\x00\x01", "é è ê", "ÿþ", "\u0301\u0301"],
    "empty": ["", "", ""],
    "special": [f"a{END}b{END}c", "<|end|> <|endof"],
}


@pytest.mark.parametrize("name", CORPORA)
@pytest.mark.parametrize("vocab_size", [257, 258, 270, 400])
def test_equal_to_the_library(name, vocab_size):
    every_text = [text for texts in CORPORA.values() for text in texts]
    assert_equal_to_library(CORPORA[name], vocab_size, others=every_text)


def test_equal_to_the_library_with_other_special_tokens():
    assert_equal_to_library(CORPORA["code"], 290, special_tokens=())
    assert_equal_to_library(CORPORA["code"], 290, special_tokens=("<|b|>", "<|a|>", "[句号]"))


small_texts = st.one_of(
    st.text(alphabet="ab", max_size=30),
    st.text(alphabet="a \n", max_size=30),
    st.text(alphabet="^'.\n \t", max_size=30),
    st.text(alphabet="中国人们明月，", max_size=20),
    st.text(alphabet="🙂🙃é\u0301 1", max_size=15),
    st.builds(
        lambda unit, n: unit * n, st.sampled_from(["a", " ", "^", "ab", "月"]), st.integers(1, 40)
    ),
)


@settings(max_examples=100)
@given(
    texts=st.lists(small_texts, max_size=8),
    others=st.lists(small_texts, max_size=3),
    n_merges=st.integers(0, 60),
)
def test_equal_to_the_library_on_any_small_corpus(texts, others, n_merges):
    assert_equal_to_library(texts, 257 + n_merges, others)


@settings(max_examples=40)
@given(texts=st.lists(small_texts, min_size=2, max_size=6), data=st.data())
def test_order_of_texts_does_not_matter(texts, data):
    shuffled = data.draw(st.permutations(texts))
    first = BytePairEncoding.train(texts, 290)
    assert BytePairEncoding.train(shuffled, 290).merges == first.merges


def learn_by_recounting(words, weights, first_new_id):
    """Learn the slow and plain way: count every pair anew after each merge."""
    words = [list(word) for word in words]
    while True:
        counts = Counter()
        for word, weight in zip(words, weights, strict=True):
            for pair in pairwise(word):
                counts[pair] += weight
        if not counts:
            return
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        yield best, counts[best]
        words = [merge_pair(word, best, first_new_id) for word in words]
        first_new_id += 1


@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 3), min_size=1, max_size=14), st.integers(1, 5)),
        max_size=6,
    )
)
def test_incremental_counts_equal_recounting(weighted):
    words = [list(word) for word, _ in weighted]
    weights = [weight for _, weight in weighted]
    expected = list(learn_by_recounting(words, weights, 4))
    assert list(learn_merges(words, weights, 4)) == expected
    assert all(len(word) == 1 for word in words)


def test_the_table_in_the_lesson():
    base = BytePairEncoding()
    counts = Counter(split_text("low low lower"))
    words = [base.to_byte_ids(piece) for piece in counts]
    assert list(counts) == ["low", " low", " lower"]
    learned = learn_merges(words, list(counts.values()), base.vocab_size)
    names, merges = [], []
    for _ in range(3):
        pair, count = next(learned)
        merges.append(pair)
        names.append((BytePairEncoding(merges).token_bytes[-1], count))
    assert names == [(b"lo", 3), (b"low", 3), (b" low", 2)]
    assert (base.token_bytes[1], base.token_bytes[256], base.vocab_size) == (b"!", b"\xad", 257)


@given(st.lists(st.integers(0, 2), max_size=20), st.integers(0, 2), st.integers(0, 2))
def test_merge_pair_keeps_the_content_and_leaves_no_pair(tokens, left, right):
    merged = merge_pair(tokens, (left, right), 9)
    expanded = [t for token in merged for t in ((left, right) if token == 9 else (token,))]
    assert expanded == tokens
    assert (left, right) not in pairwise(merged)


def test_pair_table_counts_weights_and_forgets():
    table = PairTable([[1, 2, 1, 2], [2, 1]], weights=[3, 5])
    assert table.counts == {(1, 2): 6, (2, 1): 8}
    assert table.pop_best() == ((2, 1), 8)
    table.remove([1, 2, 1, 2], 3)
    assert table.pop_best() is None


@given(st.text())
def test_any_text_comes_back(text):
    assert TRAINED.decode(TRAINED.encode(text)) == text


@given(st.lists(st.integers(0, 299), max_size=30))
def test_ids_that_are_not_text_decode_as_in_the_library(ids):
    """A model may produce any ids: half characters, bytes that never occur in UTF-8."""
    assert TRAINED.decode(ids) == BUILT.decode(ids, skip_special_tokens=False)


TRAINED = BytePairEncoding.train([POEM, *CORPORA["code"], *CORPORA["emoji"]], 300)
BUILT = library([POEM, *CORPORA["code"], *CORPORA["emoji"]], 300)[2]


def test_vocab_size_too_small():
    with pytest.raises(ValueError, match=r"at least 257 \(256 bytes \+ 1 special.*got 256"):
        BytePairEncoding.train(["abc"], 256)
    assert BytePairEncoding.train(["abc"], 256, special_tokens=()).vocab_size == 256


def test_special_tokens_are_checked():
    with pytest.raises(ValueError, match="'<a>' is given 2 times"):
        BytePairEncoding.train(["abc"], 300, ("<a>", "<a>"))


def test_a_small_corpus_gives_a_smaller_vocabulary():
    assert BytePairEncoding.train(["ab"], 10_000).vocab_size == 258


def test_a_thousand_tokens_from_the_python_reference_in_seconds():
    texts = list(pydoc_data.topics.topics.values())
    assert sum(map(len, texts)) > 300_000
    start = time.process_time()
    lesson = BytePairEncoding.train(texts, 1000)
    assert time.process_time() - start < 30
    vocabulary, merges, built = library(texts, 1000)
    assert lesson.written_merges() == merges
    assert lesson.vocabulary() == vocabulary
    for text in texts[::10]:
        assert lesson.encode(text) == built.encode(text).ids
