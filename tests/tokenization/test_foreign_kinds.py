"""Any tokenizer.json: the ids and the texts of transformers, for every kind, on any text."""

import copy
import functools
import importlib.util
import json
import time
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from tokenization.chat_template import encode_chat, render_chat
from tokenization.sentence_pieces import best_split
from tokenization.tokenizer import Tokenizer
from tokenization.tokenizer_settings import TokenizerSettings

# tests are no package: the helper beside this file is loaded by its path
SPEC = importlib.util.spec_from_file_location(
    "foreign_tokenizers", Path(__file__).with_name("foreign_tokenizers.py")
)
foreign = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(foreign)

KINDS = foreign.KINDS
FAMILY, FLAG = "👩‍👩‍👧‍👦🏽", "🏳️‍🌈"
TRICKY = [
    "", " ", "  ", "a", " a", "a ", "\n", "\n\n", "   the cat", "the  cat", "▁", "▁the", "▁▁▁ the",
    "明月几时有？把酒问青天。", "龘𠮷", FAMILY, FLAG, "e\u0301 é ﬁ ＡＢＣ ½", "It's 12345 o'clock",
    "def f(x):\n    return x ** 2\n\n\n", "\t\x00\x07\x1b[0m\u200b\ufeff\u2028", "<s>x</s> <unk>",
    "<|endoftext|> <|im_start|>hi<|im_end|>", "<think>no</think>", "<0xE9>", "naïve ÅΩ",
    "a\r\nb\rc",
]  # fmt: skip
texts = st.one_of(
    st.text(max_size=60),
    st.text(alphabet="the cats明月▁ \n\t<s/>|龘👩‍👧é'1", max_size=60),
    st.lists(st.sampled_from(TRICKY), max_size=6).map("".join),
)


@functools.cache
def ours(kind):
    return Tokenizer.from_json(foreign.tokenizer_json(kind))


@functools.cache
def theirs(kind):
    import tokenizers

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(foreign.tokenizer_json(kind)),
        clean_up_tokenization_spaces=False,
    )


def with_examples(test):
    for text in TRICKY:
        test = example(text=text)(test)
    return test


@pytest.mark.parametrize("kind", KINDS)
@with_examples
@given(text=texts)
def test_ids_and_texts_are_those_of_transformers(kind, text):
    tokenizer, other = ours(kind), theirs(kind)
    ids = other.encode(text, add_special_tokens=False)
    assert tokenizer.encode(text, allow_special=True) == ids
    whole = other.encode(text, add_special_tokens=True)
    assert tokenizer.encode(text, allow_special=True, add_special=True) == whole
    for skip in (False, True):
        expected = other.decode(whole, skip_special_tokens=skip)
        # the library replaces a whole run of bytes when one of them is bad
        if "\ufffd" not in expected:
            assert tokenizer.decode(whole, skip_special=skip) == expected


@pytest.mark.parametrize("kind", KINDS)
@with_examples
@given(text=texts)
def test_what_a_user_writes_never_becomes_a_special_token(kind, text):
    tokenizer = ours(kind)
    ids = tokenizer.encode(text)
    unknown = {tokenizer.special_tokens.get("<unk>")}
    assert not set(ids) & (set(tokenizer.special_tokens.values()) - unknown)
    if kind in ("gpt2", "llama3", "llama2", "gemma") and "▁" not in text:
        assert tokenizer.decode(ids) == text  # nothing is normalized away


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_a_stream_gives_the_text_of_decode_whatever_the_ids(kind, data):
    tokenizer = ours(kind)
    known = sorted(tokenizer._bytes)
    ids = data.draw(st.lists(st.sampled_from(known), max_size=12))
    for skip in (False, True):
        for continued in (False, True):
            stream = tokenizer.stream(skip_special=skip, continued=continued)
            shown = [stream.push(i) for i in ids] + [stream.flush()]
            options = {"skip_special": skip, "continued": continued}
            assert "".join(shown) == tokenizer.decode(ids, **options)
            if not any(piece.endswith("\ufffd") for piece in shown[-1:]):
                assert all(piece.isprintable() or piece for piece in shown if piece)
    again = tokenizer.stream()
    first = "".join([again.push(i) for i in ids] + [again.flush()])
    assert first == "".join([again.push(i) for i in ids] + [again.flush()])


@pytest.mark.parametrize("kind", KINDS)
@given(head=texts, tail=texts)
def test_a_text_that_goes_on_gets_no_space_of_its_own(kind, head, tail):
    tokenizer = ours(kind)
    if kind in ("t5", "unigram", "qwen2"):  # their normalizers change text
        head, tail = "the cat", " 明月 the"
    if kind == "mistral":  # a space at the very beginning is taken for the one it adds
        head = head.lstrip(" ")
    ids = tokenizer.encode(head) + tokenizer.encode(tail, continued=True)
    if not set(ids) & {tokenizer.special_tokens.get("<unk>")} and "▁" not in head + tail and head:
        assert tokenizer.decode(ids) == head + tail


def test_the_leading_space_belongs_to_the_first_word_of_the_text_alone():
    for kind in ("llama2", "mistral", "unigram"):
        tokenizer = ours(kind)
        ids = tokenizer.encode("the cat")
        assert tokenizer.decode(ids) == "the cat"
        assert tokenizer.decode(ids, continued=True) == " the cat"
        assert tokenizer.encode("the cat") == tokenizer.encode(" the cat", continued=True)
        stream = tokenizer.stream()
        assert "".join(stream.push(i) for i in ids) == "the cat"
    # a special token ends the segment: Llama 2 begins anew after it, Mistral does not
    parts = {}
    for kind in ("llama2", "mistral"):
        ids = ours(kind).encode("a</s>the", allow_special=True, continued=True)
        parts[kind] = ours(kind).decode(ids, continued=True)
    assert parts == {"llama2": "a</s> the", "mistral": "a</s>the"}
    # spelled out by the user it is text like any other: no segment ends there
    ids = ours("llama2").encode("a</s>the", continued=True)
    assert ours("llama2").decode(ids, continued=True) == "a</s>the"


def test_half_a_character_waits_for_the_other_half():
    tokenizer = ours("llama2")
    ids = tokenizer.encode("龘!")
    stream = tokenizer.stream()
    assert [stream.push(i) for i in ids if i != tokenizer.encode("▁", continued=True)[0]] == [
        *("", "", "龘", "!")
    ]


def test_the_written_out_viterbi_finds_the_splits_of_the_library():
    values = json.loads(foreign.tokenizer_json("unigram"))
    scores = {piece: score for piece, score in values["model"]["vocab"] if piece[0] != "<"}
    tokenizer = ours("unigram")
    for word in ("cats", "table", "the", "mat", "isn't", "return"):
        if set(word) <= set(scores):
            split = best_split("▁" + word, scores)
            assert [tokenizer._encoder.plain.token_to_id(p) for p in split] == tokenizer.encode(
                word
            )


@pytest.mark.parametrize("kind", KINDS)
def test_time_is_linear_in_the_length(kind):
    tokenizer = ours(kind)
    for unit in ("a", "^", " ", "月", "龘"):
        text = unit * ((1 << 18) // len(unit.encode()))
        start = time.process_time()  # others use this machine, too
        ids = tokenizer.encode(text)
        assert time.process_time() - start < 1, (kind, unit)
        assert ids or (kind == "t5" and unit == " ")  # it strips blanks


MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("kind", ["llama2", "mistral", "unigram"])
def test_a_chat_in_pieces_has_the_ids_of_the_whole(kind):
    """The answer goes on where the prompt ended, and its space is its own, not an added one."""
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    settings = TokenizerSettings(tokens, {"default": MISTRAL})
    tokenizer = Tokenizer(foreign.tokenizer_json(kind), "t", settings)
    words = ["the cat", "明月 the", "what<s>?", "the table"]
    roles = ["user", "assistant"] * 2
    talk = [{"role": role, "content": text} for role, text in zip(roles, words, strict=True)]
    pieces = encode_chat(tokenizer, talk[:2])
    whole = render_chat(tokenizer, talk[:2]).text
    expected = theirs(kind).encode(whole, add_special_tokens=False)
    assert [i for piece in pieces for i in piece.ids] == expected
    pieces = encode_chat(tokenizer, talk)
    assert [piece.learned for piece in pieces] == [False, True, False, True]
    ids = [i for piece in pieces for i in piece.ids]
    special = [i for i in ids if i in (1, 2)]
    assert special == [1, 2, 2]  # the <s> that the user typed is text


def test_a_model_reads_what_its_tokenizer_puts_before_a_text():
    from inference.prompts import encode_prompts

    (ids,) = encode_prompts(["the cat"], ours("llama2"), 99, sliding=False)
    assert ids == [1, *ours("llama2").encode("the cat")]
    with pytest.raises(ValueError, match="the prompt is empty"):
        encode_prompts([""], ours("llama2"), 99, sliding=False)


def test_what_is_written_after_a_prompt_keeps_its_space():
    from inference.continuation import Continuation
    from inference.sampling import SamplingParams

    tokenizer = ours("llama2")
    new = tokenizer.encode(" the", continued=True)
    for prompt, expected in ((tokenizer.encode("the cat"), " the"), ([1], "the")):
        row = Continuation(prompt, tokenizer, SamplingParams(), context=None)
        assert "".join(row.feed(i) for i in new) == expected


# ── damaged files ───────────────────────────────────────────────────────────────────────────────


def set_at(path, value):
    def change(values):
        *parents, last = path
        for key in parents:
            values = values[key]
        values[last] = value

    return change


def drop(token):
    return lambda values: values["model"]["vocab"].pop(token)


def drop_a_merged_token(values):
    left, right = values["model"]["merges"][3]
    del values["model"]["vocab"][left + right]


DAMAGES = [
    ("llama2", drop("<0x41>"), r"1 of 256 bytes have no token \(0x41\)"),
    ("llama2", set_at(["model", "byte_fallback"], False), None),
    ("llama2", drop_a_merged_token, r"merge 3 \(.*\) names '.*', which is not among the"),
    ("llama2", set_at(["model", "vocab", "<unk>"], 7), r"duplicate id 7|token '<unk>' has two ids"),
    ("llama2", set_at(["decoder", "decoders", 1], {"type": "Fuse"}), r"unsupported"),
    ("llama2", set_at(["decoder", "decoders", 0, "content"], "_"), r"unsupported tokenizer"),
    ("llama2", set_at(["decoder", "decoders", 3, "start"], 2), r"unsupported tokenizer"),
    ("gemma", lambda v: v["decoder"]["decoders"].pop(1), r"its decoder has no ByteFallback"),
    ("unigram", set_at(["model", "unk_id"], None), r"neither byte_fallback nor an unknown token"),
    ("unigram", set_at(["model", "unk_id"], 10**6), r"neither byte_fallback nor an unknown token"),
    ("unigram", set_at(["model", "unk_id"], True), r"neither byte_fallback nor an unknown token"),
    ("unigram", set_at(["model", "vocab", 9, 0], "▁"), r"token '▁' has two ids, \d+ and \d+"),
    ("unigram", set_at(["model", "vocab", 9], ["x"]), r"entry 9 of the vocabulary must be a token"),
    ("unigram", set_at(["model", "vocab", 9, 1], "x"), r"entry 9 .* got \['.*', 'x'\]"),
    ("unigram", set_at(["model", "vocab", 9, 1], True), r"entry 9 of the vocabulary"),
    ("unigram", set_at(["model", "vocab", 9, 1], float("nan")), r"entry 9 of the vocabulary"),
    ("unigram", set_at(["model", "vocab"], {}), r"unsupported tokenizer \(model 'Unigram'"),
    ("unigram", set_at(["model", "byte_fallback"], True), r"its decoder has no ByteFallback"),
    ("t5", set_at(["added_tokens", 1, "id"], 9), r"duplicate id 9|has two ids"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "change", "message"), DAMAGES)
def test_damage_is_named(kind, change, message):
    values = json.loads(foreign.tokenizer_json(kind))
    damaged = copy.deepcopy(values)
    change(damaged)
    if message is None:  # an unknown token will do, too
        assert 0 in Tokenizer(json.dumps(damaged), "my.json").encode("龘")
        return
    with pytest.raises(ValueError, match=message) as caught:
        Tokenizer(json.dumps(damaged), "my.json")
    assert "my.json" in str(caught.value)


def test_fingerprints_differ_where_ids_do():
    values = json.loads(foreign.tokenizer_json("llama2"))
    found = {Tokenizer.from_json(json.dumps(values)).fingerprint}
    values["model"]["fuse_unk"] = False
    found.add(Tokenizer.from_json(json.dumps(values)).fingerprint)
    values["model"]["byte_fallback"] = False
    found.add(Tokenizer.from_json(json.dumps(values)).fingerprint)
    assert len(found) == 3
    assert Tokenizer.from_json(ours("unigram").to_json()).fingerprint == ours("unigram").fingerprint
