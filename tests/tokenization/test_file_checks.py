"""A tokenizer.json is consistent, or it is refused and the fault is named."""

import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenization.file_checks import parse_specification
from tokenization.tokenizer import Tokenizer
from tokenization.tokenizer_file import kind_of

GOOD = json.loads(Tokenizer.train_bpe(["low low lower 明月明月"], 265).to_json())


def parse(specification):
    return parse_specification(json.dumps(specification), "my.json")


def set_at(path, value):
    def change(specification):
        *parents, last = path
        for key in parents:
            specification = specification[key]
        specification[last] = value

    return change


def insert_merge(merge):
    return lambda specification: specification["model"]["merges"].insert(0, merge)


def drop_token(token):
    return lambda specification: specification["model"]["vocab"].pop(token)


DAMAGES = [
    (set_at(["model", "vocab", "A"], 34), r"my\.json: duplicate id 34, shared by 'A' and 'B'"),
    (set_at(["model", "vocab", "A"], -1), r"id of token 'A' must be an integer .* got -1"),
    (set_at(["model", "vocab", "A"], True), r"id of token 'A' must be an integer .* got True"),
    (set_at(["model", "vocab", "A"], 2.0), r"id of token 'A' must be an integer .* got 2\.0"),
    (set_at(["model", "vocab", "A"], 2**32), r"in \[0, 2\*\*32\), got 4294967296"),
    (set_at(["model", "vocab", "A"], None), r"id of token 'A' .* got None"),
    (set_at(["added_tokens", 0, "id"], 5), r"duplicate id 5, shared by '%' and '<\|endoftext\|>'"),
    (set_at(["added_tokens", 0, "id"], 900), r"'<\|endoftext\|>' has two ids, 0 and 900"),
    (set_at(["added_tokens", 0, "content"], None), "added_tokens must be a list of tokens"),
    (set_at(["added_tokens"], {"a": 1}), r"added_tokens must be a list of tokens"),
    (set_at(["added_tokens", 0], "<|endoftext|>"), r"found '<\|endoftext\|>'"),
    (insert_merge(["l", "中"]), r"merge 0 \('l' \+ '中'\) names '中', .* the 265 tokens"),
    (insert_merge("中 l"), r"merge 0 \('中' \+ 'l'\) names '中'"),
    (insert_merge(["A", "B"]), r"merge 0 \('A' \+ 'B'\) names 'AB'"),
    (insert_merge(["A"]), r"merge 0 must be a pair of tokens, got \['A'\]"),
    (insert_merge("A B C"), r"merge 0 must be a pair of tokens, got \['A', 'B', 'C'\]"),
    (insert_merge(["A", 3]), r"merge 0 must be a pair of tokens"),
    (insert_merge(7), r"merge 0 must be a pair of tokens, got 7"),
    (drop_token("A"), r"1 of 256 bytes have no token \(0x41\); text with these"),
    (drop_token("lo"), r"names 'lo', which is not among the 264"),
    (set_at(["model", "vocab"], {}), r"my\.json: "),
    (set_at(["model", "vocab"], ["a"]), r"unsupported tokenizer"),
    (set_at(["model", "dropout"], 0.1), r"model\.dropout = 0\.1 is not supported"),
    (set_at(["model", "end_of_word_suffix"], "</w>"), r"model\.end_of_word_suffix = '</w>'"),
    (set_at(["model", "type"], "Unigram"), r"model 'Unigram', decoder \['ByteLevel'\]"),
    (set_at(["decoder"], {"type": "Metaspace"}), r"neither byte_fallback nor an unknown token"),
    (set_at(["decoder"], {"type": "WordPiece"}), r"decoder \['WordPiece'\]"),
    (set_at(["decoder"], None), r"decoder \[\]\); supported: byte-level BPE"),
    (set_at(["model"], None), r"my\.json is not a tokenizer: it needs an object with a 'model'"),
    (set_at(["pre_tokenizer"], {"type": "Nonsense"}), r"the tokenizers library refuses it"),
]


@pytest.mark.parametrize(("change", "message"), DAMAGES)
def test_damage_is_named(change, message):
    damaged = copy.deepcopy(GOOD)
    change(damaged)
    with pytest.raises(ValueError, match=message):
        Tokenizer(json.dumps(damaged), "my.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"my\.json is not valid JSON: .* line 1, column 1"),
        ("[1, 2]", r"my\.json is not a tokenizer"),
        ('{"model": {"vocab": {"a": 0, "a": 1}}}', r"my\.json: the key 'a' appears twice"),
        ("[" * 200_000, r"my\.json: .*recursion"),
    ],
)
def test_text_that_is_no_tokenizer(text, message):
    with pytest.raises(ValueError, match=message):
        parse_specification(text, "my.json")


def paths_in(value, path=()):
    """Every place in a JSON document, as the keys that lead to it."""
    if path:
        yield path
    if isinstance(value, (dict, list)):
        for key, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield from paths_in(child, (*path, key))


PATHS = [path for path in paths_in(GOOD) if path[:2] != ("model", "vocab")]
PATHS += [("model", "vocab", token) for token in ("lo", "low", "A", "æ", "<|endoftext|>")]
junk = st.sampled_from(
    [None, True, -1, 3, 2**40, 1.5, "", "x", "A B", [], ["A"], {}, {"type": "x"}]
)


@settings(max_examples=150)
@given(path=st.sampled_from(PATHS), value=junk)
def test_any_single_change_loads_or_is_a_value_error(path, value):
    changed = copy.deepcopy(GOOD)
    set_at(path, value)(changed)
    try:
        tokenizer = Tokenizer.from_json(json.dumps(changed))
    except ValueError:
        return
    ids = tokenizer.encode("low 明月 A")
    assert all(0 <= i < tokenizer.vocab_size for i in ids)


def test_bytes_that_never_occur_in_text_may_lack_a_token():
    reduced = copy.deepcopy(GOOD)
    for symbol in ("À", "Á", "õ", "ÿ"):  # bytes C0, C1, F5, FF
        del reduced["model"]["vocab"][symbol]
    assert kind_of(parse(reduced)) == "bpe"


def test_ids_that_the_library_would_renumber_are_refused():
    specification = copy.deepcopy(GOOD)
    entry = {**specification["added_tokens"][0], "id": 1000, "content": "<|far|>"}
    specification["added_tokens"].append(entry)
    with pytest.raises(
        ValueError, match=r"token '<\|far\|>' has the id 1000, but .* would use 265"
    ):
        Tokenizer.from_json(json.dumps(specification))
