"""The fast path gives the ids of the library, or gives the text back; merges and ranks agree."""

import importlib.util
import json
import re
import sys
import time
import unicodedata
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from tokenization import encoder, fast_encoder
from tokenization.bpe_ranks import first_conflict, merge, ranks_of
from tokenization.encoder import Encoder, parse
from tokenization.fast_encoder import BLANK_RUN, FastEncoder, pattern_of, safe_characters
from tokenization.text_pieces import SPLIT_PATTERN, byte_symbols
from tokenization.tokenizer import Tokenizer

SPEC = importlib.util.spec_from_file_location(
    "foreign_tokenizers", Path(__file__).with_name("foreign_tokenizers.py")
)
foreign = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(foreign)

PATTERNS = {"gpt2": None, "llama3": foreign.LLAMA3, "qwen2": foreign.QWEN2, "ours": SPLIT_PATTERN}
OURS = Tokenizer.train_bpe(foreign.CORPUS, 420).to_json()
FILES = {
    **{kind: foreign.tokenizer_json(kind) for kind in ("gpt2", "llama3", "qwen2")},
    "ours": OURS,
}
ENCODERS = {name: Encoder(parse(text), text, name) for name, text in FILES.items()}


def both(name, texts):
    """The ids of the library and of the fast path; None where it gives the text back."""
    slow = ENCODERS[name].plain.encode_batch(texts, add_special_tokens=False)
    return [one.ids for one in slow], ENCODERS[name].fast.encode(texts)


@pytest.mark.parametrize("name", FILES)
@given(texts=st.lists(st.one_of(
    st.text(max_size=80),
    st.text(alphabet="the cat's 'LL 123\n\t\r  明月，。👩‍🏽é\u0301\u00a0\u3000ſK_-=", max_size=80),
), max_size=5))  # fmt: skip
def test_ids_are_those_of_the_library(name, texts):
    slow, fast = both(name, texts)
    assert len(slow) == len(fast)
    for text, expected, found in zip(texts, slow, fast, strict=True):
        assert found is None or found == expected
        assert found is not None or not text.isascii() or "<think>" in text


@pytest.mark.parametrize("name", PATTERNS)
def test_both_engines_split_alike_at_every_safe_character(name):
    """With a token for every pair of bytes, a boundary that moves by one changes the ids."""
    import tiktoken

    symbols = byte_symbols()
    vocabulary = {symbol: byte for byte, symbol in enumerate(symbols)}
    merges = [(a, b) for a in symbols for b in symbols]
    vocabulary |= {a + b: 256 + i for i, (a, b) in enumerate(merges)}
    library = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    parts = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if PATTERNS[name]:
        split = pre_tokenizers.Split(tokenizers.Regex(PATTERNS[name]), "isolated")
        bytes_alone = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        parts = pre_tokenizers.Sequence([split, bytes_alone])
    library.pre_tokenizer, library.decoder = parts, decoders.ByteLevel()
    specification = json.loads(library.to_str())
    ranks = {bytes([byte]): byte for byte in range(256)}
    ranks |= {bytes([i, j]): 256 + 256 * i + j for i in range(256) for j in range(256)}
    pattern = pattern_of(specification)
    fast = tiktoken.Encoding("t", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    characters = expand(safe_characters(False), step=19)
    assert len(characters) > 15_000
    texts = []
    for first in range(0, len(characters), 500):
        some = characters[first : first + 500]
        texts.append("".join(f"a{c}b {c}1'{c} {c}{c}.{c}\n{c} " for c in some))
    slow = library.encode_batch_fast(texts, add_special_tokens=False)
    for text, one in zip(texts, slow, strict=True):
        assert fast.encode_ordinary(text) == one.ids, text[:200]


def expand(ranges, step=1):
    """Every character; of blocks of thousands alike (ideographs, syllables) each step-th."""
    found = re.findall(r"\\U([0-9a-f]{8})-\\U([0-9a-f]{8})", ranges)
    spans = [range(int(a, 16), int(b, 16) + 1) for a, b in found]
    return [chr(c) for span in spans for c in (span if len(span) < 2000 else span[::step])]


def test_characters_that_nfc_leaves_alone():
    characters = expand(safe_characters(True))
    assert len(characters) > 80_000
    assert "月" in characters
    assert not {"\u0301", "\u2000", "\u212b", "\u1161", "\u11a8"} & set(characters)
    text = "".join(characters)
    assert unicodedata.normalize("NFC", text) == text
    assert unicodedata.normalize("NFC", text[::-1]) == text[::-1]


def test_texts_that_are_given_back():
    for name, fast in ((name, one.fast) for name, one in ENCODERS.items()):
        assert fast.accepts("")
        assert fast.accepts("The cat, 明月 🙂\n" * 1000)
        assert not fast.accepts("a\u0378b")
        assert fast.accepts("e\u0301") == (name != "qwen2")
        assert fast.accepts("<think>") == (name == "ours")
        assert fast.accepts("<|im_end|>")
        assert not fast.accepts("x" * 777 + " \n" * BLANK_RUN + "y")


def test_a_batch_is_in_order_whoever_encodes_it(monkeypatch):
    monkeypatch.setattr(encoder, "WORTH_IT", 1)
    tokenizer = Tokenizer.from_json(FILES["qwen2"])
    texts = ["a\u0378", "the cat", "", "e\u0301", "<think>", "<|im_end|>", "明月" * 99] * 30
    expected = [tokenizer._encoder.plain.encode(t, add_special_tokens=False).ids for t in texts]
    assert tokenizer.encode_batch(texts) == expected
    assert tokenizer.encode_batch([]) == []
    monkeypatch.setattr(encoder, "WORTH_IT", 1 << 40)
    assert tokenizer.encode_batch(texts) == expected


@pytest.mark.parametrize(("setting", "threads"), [("false", 1), ("true", 7), (None, 7)])
def test_a_process_among_many_uses_one_thread(monkeypatch, setting, threads):
    opened = []
    real = fast_encoder.ThreadPoolExecutor

    def counting(number):
        opened.append(number)
        return real(number)

    monkeypatch.setattr(fast_encoder, "ThreadPoolExecutor", counting)
    monkeypatch.setattr(fast_encoder.os, "cpu_count", lambda: 7)
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    if setting is not None:
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", setting)
    fast = FastEncoder.build(parse(OURS))
    assert fast.encode(["the moon"]) == [Tokenizer(OURS).encode("the moon")]
    assert opened == [threads]


def test_small_texts_never_build_the_fast_path(monkeypatch):
    monkeypatch.setattr(FastEncoder, "build", lambda _: pytest.fail("built for a few words"))
    tokenizer = Tokenizer.from_json(OURS)
    assert tokenizer.encode_batch(["the cat"] * 100)


def test_without_tiktoken_the_library_does_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    monkeypatch.setattr(encoder, "WORTH_IT", 1)
    assert FastEncoder.build(parse(OURS)) is None
    assert Tokenizer.from_json(OURS).encode_batch(["the cat"]) == [
        ENCODERS["ours"].encode(["the cat"])[0]
    ]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("unit", ["a", "^", " ", "月", "\n", "1", " a", "^\n \t", "\u3000"])
def test_time_is_linear_on_monotonous_text(name, unit, monkeypatch, capfd):
    monkeypatch.setattr(encoder, "WORTH_IT", 1)
    text = unit * ((1 << 20) // len(unit.encode()))
    assert ENCODERS[name].fast is not None
    start = time.process_time()
    (ids,) = ENCODERS[name].encode([text])
    assert time.process_time() - start < 2  # the promise is a second on a free machine
    assert ids
    assert capfd.readouterr().err == ""  # no engine fell over


# ── what is not provably the same ───────────────────────────────────────────────────────────────


def change(path, value):
    specification = json.loads(FILES["llama3"])
    *parents, last = path
    part = specification
    for key in parents:
        part = part[key]
    part[last] = value
    return specification


@pytest.mark.parametrize(
    "specification",
    [
        change(["normalizer"], {"type": "NFKC"}),
        change(["pre_tokenizer", "pretokenizers", 0, "pattern"], {"Regex": r"\w+|\W+"}),
        change(["pre_tokenizer", "pretokenizers", 0, "pattern"], {"String": " "}),
        change(["pre_tokenizer", "pretokenizers", 0, "behavior"], "Removed"),
        change(["pre_tokenizer", "pretokenizers", 0, "invert"], True),
        change(["pre_tokenizer", "pretokenizers", 1, "use_regex"], True),
        change(["pre_tokenizer", "pretokenizers", 1, "add_prefix_space"], True),
        change(["pre_tokenizer"], None),
        change(["model", "merges"], json.loads(FILES["llama3"])["model"]["merges"][::-1]),
        json.loads(foreign.tokenizer_json("llama2")),
        json.loads(Tokenizer.characters(["ab"]).to_json()),
    ],
)
def test_what_cannot_be_shown_to_be_the_same_is_left_to_the_library(specification):
    assert FastEncoder.build(specification) is None


def test_a_token_that_no_merge_reaches_is_found_whole_where_merges_are_ignored():
    specification = json.loads(FILES["llama3"])
    size = max(specification["model"]["vocab"].values())
    specification["model"]["vocab"]["Ġq#~"] = size + 999  # `q#`, `#~` never merge
    text = json.dumps(specification)
    tokenizer = tokenizers.Tokenizer.from_str(text)
    assert fast_encoder.ranks_of(specification)[b" q#~"] == size + 999
    specification["model"]["ignore_merges"] = False
    assert b" q#~" not in ranks_of(specification)
    assert tokenizer.get_vocab_size() > 0


merges = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=12)


@given(
    choices=merges, texts=st.lists(st.text(alphabet="abc", max_size=14), min_size=1, max_size=20)
)
def test_ranks_that_are_passed_give_the_merges_of_the_table(choices, texts):
    """Random tables, most of them no training would give."""
    tokens = [b"a", b"b", b"c"]
    pairs = {}
    for left, right in choices:
        pair = (tokens[left % len(tokens)], tokens[right % len(tokens)])
        token = pair[0] + pair[1]
        if token not in tokens and len(token) < 9:
            tokens.append(token)
            pairs[token] = [pair]
    ranks = {token: rank for rank, token in enumerate(tokens)}
    bad = first_conflict(ranks, pairs)
    alone = {token: merge(token, {t: r for t, r in ranks.items() if r < ranks[token]}, None)
             for token in pairs}  # fmt: skip
    wrong = [token for token in pairs if tuple(alone[token]) != pairs[token][0]]
    assert (bad is None) == (wrong == [])
    if bad is None:
        for text in [*texts, *(token.decode() * 2 for token in tokens)]:
            data = text.encode()
            assert merge(data, ranks, pairs) == merge(data, ranks, None)
