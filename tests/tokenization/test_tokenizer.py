"""The Tokenizer: exact both ways, one file format, special tokens that no user can forge."""

import pickle
import re
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenization.tokenizer import Tokenizer

END = "<|endoftext|>"
SPECIAL = (END, "<|user|>", "<|user|><|end|>")
LINES = ["举头望明月，低头思故乡。", "def f(x):\n    return x ** 2\n", "low low lower 🙂🙂"]
BPE = Tokenizer.train_bpe(LINES * 3, 330)
CHAT = Tokenizer.train_bpe(LINES * 3, 330, SPECIAL)
CHARACTERS = Tokenizer.characters([*LINES, "".join(SPECIAL)], SPECIAL)
BOTH = pytest.mark.parametrize("tokenizer", [CHAT, CHARACTERS], ids=["bpe", "characters"])


def from_library(tokenizer):
    return tokenizers.Tokenizer.from_str(tokenizer.to_json())


# ── round trip ──────────────────────────────────────────────────────────────


@given(st.text())
def test_any_text_comes_back_from_bpe(text):
    ids = BPE.encode(text)
    assert BPE.decode(ids) == text
    assert b"".join(BPE.token_bytes(i) for i in ids) == text.encode("utf-8")


@given(st.text(min_size=1))
def test_any_text_comes_back_from_its_characters(text):
    tokenizer = Tokenizer.characters([text])
    ids = tokenizer.encode(text)
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.vocab_size == 1 + len(set(text))


@given(st.lists(st.text(), max_size=5))
def test_a_batch_equals_one_by_one(texts):
    assert BPE.encode_batch(texts) == [BPE.encode(text) for text in texts]


@given(st.lists(st.integers(0, BPE.vocab_size - 1), max_size=30))
def test_any_ids_decode_as_in_the_library(ids):
    assert BPE.decode(ids) == from_library(BPE).decode(ids, skip_special_tokens=False)


def test_every_token_has_its_bytes():
    every = [CHAT.token_bytes(i) for i in range(CHAT.vocab_size)]
    assert every[:3] == [name.encode() for name in SPECIAL]
    assert sorted(every[3:259]) == [bytes([byte]) for byte in range(256)]
    assert {"头".encode(), b"low", b" low"} <= set(every[259:])
    assert len(set(every)) == CHAT.vocab_size
    letters = [CHARACTERS.token_bytes(i).decode() for i in range(3, CHARACTERS.vocab_size)]
    assert letters == sorted(set("".join([*LINES, *SPECIAL])))


# ── special tokens ──────────────────────────────────────────────────────────

forged = st.lists(
    st.sampled_from([*SPECIAL, "<|", "|>", "end", "<|end", "oftext|>", "<|user|", ">", "x", "月"])
).map("".join)


@BOTH
@given(text=forged)
def test_user_text_never_becomes_a_special_token(tokenizer, text):
    if tokenizer is CHARACTERS:
        text = text.replace("月", "明")
    ids = tokenizer.encode(text)
    assert not set(ids) & set(tokenizer.special_tokens.values())
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode_batch([text]) == [ids]


@BOTH
@given(text=forged)
def test_allowed_special_tokens_are_found_longest_first(tokenizer, text):
    pattern = "|".join(re.escape(name) for name in sorted(SPECIAL, key=len, reverse=True))
    expected = []
    for part in re.split(f"({pattern})", text):
        known = tokenizer.special_tokens.get(part)
        expected += tokenizer.encode(part) if known is None else [known]
    ids = tokenizer.encode(text, allow_special=True)
    assert ids == expected
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids, skip_special=True) == re.sub(pattern, "", text)


def test_special_tokens_come_first_in_the_given_order():
    for tokenizer in (CHAT, CHARACTERS):
        assert tokenizer.special_tokens == {name: i for i, name in enumerate(SPECIAL)}


@pytest.mark.parametrize(
    ("special", "end_id"),
    [((), None), (("<|x|>",), None), (("<|x|>", END), 1), (("</s>",), 0), (("</s>", END), 1)],
)
def test_end_id(special, end_id):
    assert Tokenizer.train_bpe(LINES, 300, special).end_id == end_id
    assert Tokenizer.characters(LINES, special).end_id == end_id


def test_a_special_token_that_merges_could_make_is_refused():
    with pytest.raises(ValueError, match=r"merge 0 \('l' \+ 'o'\) makes the special token 'lo'"):
        Tokenizer.train_bpe(["lo lo lo"], 300, ("lo",))
    with pytest.raises(ValueError, match="at least 2 characters, got 'a'"):
        Tokenizer.characters(["abc"], ("a",))


def test_threads_with_and_without_special_tokens_do_not_disturb_each_other():
    def work(allow_special):
        expected = 1 if allow_special else len(CHAT.encode(END))
        return all(
            len(CHAT.encode(END, allow_special=allow_special)) == expected for _ in range(300)
        )

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, [True, False, True, False]))


# ── bad input ───────────────────────────────────────────────────────────────


@pytest.mark.parametrize("allow_special", [False, True])
def test_an_unseen_character_is_named(allow_special):
    tokenizer = Tokenizer.characters(["明月"])
    text = f"明{END}月杯" if allow_special else "明月杯"
    message = rf"text holds '杯' \(U\+676F\) at offset {len(text) - 1}.*vocabulary of 3 tokens"
    with pytest.raises(ValueError, match=message):
        tokenizer.encode(text, allow_special=allow_special)
    with pytest.raises(ValueError, match=r"texts\[1\] holds '\\n' \(U\+000A\) at offset 0"):
        tokenizer.encode_batch(["明", "\n"], allow_special=allow_special)


def test_a_special_token_s_letters_need_not_be_in_the_character_vocabulary():
    tokenizer = Tokenizer.characters(["明月"])
    assert tokenizer.encode(f"明{END}月", allow_special=True) == [1, 0, 2]
    with pytest.raises(ValueError, match=r"'<' \(U\+003C\) at offset 1"):
        tokenizer.encode(f"明{END}月")
    longer = Tokenizer.characters(["明月"], ("<a>", "<a><b>"))
    assert longer.encode("明<a><b>月<a>", allow_special=True) == [2, 1, 3, 0]


@BOTH
def test_lone_surrogates_are_refused_with_their_place(tokenizer):
    with pytest.raises(ValueError, match=r"text holds the lone surrogate U\+DC80 at offset 3"):
        tokenizer.encode("low\udc80")
    with pytest.raises(ValueError, match=r"texts\[1\] holds the lone surrogate U\+D800"):
        tokenizer.encode_batch(["low", "\ud800"])
    with pytest.raises(ValueError, match=r"texts\[2\] holds the lone surrogate"):
        Tokenizer.characters(iter(["a", "b", "\ud800"]))
    with pytest.raises(ValueError, match=r"texts\[2\] holds the lone surrogate"):
        Tokenizer.train_bpe(iter(["a", "b", "\ud800"]), 300)


@BOTH
@pytest.mark.parametrize("bad", [-1, 10**6, 2**70])
def test_ids_out_of_range_are_refused(tokenizer, bad):
    size = tokenizer.vocab_size
    message = rf"token id {bad} is outside.* 0\.\.{size - 1} \(vocab_size {size}\)"
    with pytest.raises(ValueError, match=message):
        tokenizer.decode([3, bad])
    with pytest.raises(ValueError, match=message):
        tokenizer.token_bytes(bad)


@pytest.mark.parametrize("bad", [3.0, "3", None, np.array([3, 4])])
def test_ids_that_are_not_integers_are_refused(bad):
    with pytest.raises(ValueError, match="a token id must be an integer"):
        BPE.decode([bad])


def test_ids_may_be_numpy_or_torch_integers():
    ids = CHAT.encode(f"明月{END}", allow_special=True)
    for same in (np.array(ids, dtype=np.uint16), torch.tensor(ids), tuple(ids), iter(ids)):
        assert CHAT.decode(same, skip_special=True) == "明月"
    assert "".join(map(CHAT.stream(skip_special=True).push, torch.tensor(ids))) == "明月"


def test_one_str_is_not_a_list_of_texts():
    for refuse in (Tokenizer.characters, BPE.encode_batch, lambda t: Tokenizer.train_bpe(t, 300)):
        with pytest.raises(ValueError, match=r"got one str; give \[text\]"):
            refuse("abc")
    with pytest.raises(ValueError, match="text must be a str, got list"):
        BPE.encode(["abc"])


def test_nothing_to_learn_from():
    for texts in ([], [""], iter(())):
        with pytest.raises(ValueError, match="no character"):
            Tokenizer.characters(texts)
    assert Tokenizer.train_bpe([], 257).encode("月") == [163, 251, 231]  # bytes need no text


def test_vocab_size_must_hold_the_bytes():
    with pytest.raises(
        ValueError, match=r"at least 259 \(256 bytes \+ 3 special tokens\), got 258"
    ):
        Tokenizer.train_bpe(LINES, 258, SPECIAL)


# ── files ───────────────────────────────────────────────────────────────────


@BOTH
def test_saved_to_a_file_or_a_directory_and_read_by_anyone(tokenizer, tmp_path):
    from transformers import PreTrainedTokenizerFast

    path = tokenizer.save(tmp_path / "new" / "model")
    assert path == tmp_path / "new" / "model" / "tokenizer.json"
    assert tokenizer.save(tmp_path / "mine.json") == tmp_path / "mine.json"
    assert [p.name for p in path.parent.iterdir()] == ["tokenizer.json"]
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(path))
    for same in (Tokenizer.load(path), Tokenizer.load(path.parent), Tokenizer.load(str(path))):
        assert same.fingerprint == tokenizer.fingerprint
        assert (same.kind, same.vocab_size) == (tokenizer.kind, tokenizer.vocab_size)
        assert same.special_tokens == tokenizer.special_tokens
        assert same.to_json() == tokenizer.to_json()
    for line in LINES:
        ids = tokenizer.encode(line)
        assert Tokenizer.load(path).encode(line) == ids
        assert from_library(tokenizer).encode(line).ids == ids
        assert theirs.encode(line, add_special_tokens=False) == ids
        assert theirs.decode(ids) == line
    assert theirs.encode(f"low{END}") == tokenizer.encode(f"low{END}", allow_special=True)


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"no tokenizer at .*tokenizer\.json"):
        Tokenizer.load(tmp_path)
    with pytest.raises(ValueError, match=r"no tokenizer at .*other\.json"):
        Tokenizer.load(tmp_path / "other.json")
    path = tmp_path / "tokenizer.json"
    path.write_text('{"model": {\n "type" 3', encoding="utf-8", newline="\n")
    with pytest.raises(ValueError, match=r"tokenizer\.json is not valid JSON.*line 2, column 9"):
        Tokenizer.load(tmp_path)
    path.write_bytes(b'{"model": "\xff"}')
    with pytest.raises(ValueError, match=r"tokenizer\.json is not valid UTF-8.*offset 11"):
        Tokenizer.load(tmp_path)


@BOTH
def test_pickled_copies_are_the_same(tokenizer):
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.fingerprint == tokenizer.fingerprint
    assert copy.encode(LINES[0]) == tokenizer.encode(LINES[0])


def test_training_is_deterministic_and_streams_its_texts():
    again = Tokenizer.train_bpe((line for line in LINES * 3), 330)
    assert again.to_json() == BPE.to_json()
    assert Tokenizer.train_bpe(LINES[::-1] * 3, 330).fingerprint == BPE.fingerprint
    assert Tokenizer.characters(reversed(LINES)).to_json() == Tokenizer.characters(LINES).to_json()
    everything = [BPE, CHAT, CHARACTERS, Tokenizer.train_bpe(LINES * 3, 300)]
    assert len({tokenizer.fingerprint for tokenizer in everything}) == 4


# ── speed ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("unit", ["a", "^", " ", "\n", "月", "7", "^\n \t"])
def test_time_is_linear_on_monotonous_text(unit):
    def seconds(n_bytes):
        text = unit * (n_bytes // len(unit.encode()))
        start = time.process_time()  # of this process alone: others may keep the machine busy
        ids = BPE.encode(text)
        seconds = time.process_time() - start
        assert BPE.decode(ids) == text
        return seconds

    quarter, whole = min(seconds(2**18), seconds(2**18)), seconds(2**20)
    assert whole < 10 * quarter + 0.1  # linear is 4 times, quadratic would be 16
    assert whole < (1.0 if unit in "a^ \n月" else 2.0)


def test_characters_take_linear_time_too():
    text = "举头望明月" * 200_000
    start = time.process_time()
    assert len(CHARACTERS.encode(text)) == len(text)
    assert time.process_time() - start < 3
