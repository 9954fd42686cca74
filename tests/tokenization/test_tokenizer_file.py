"""What a tokenizer.json says: its kind, the bytes of every id, its fingerprint."""

import copy
import json

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from tokenization.tokenizer import Tokenizer
from tokenization.tokenizer_file import fingerprint_of, kind_of, token_table

GOOD = json.loads(Tokenizer.train_bpe(["low low lower 明月明月"], 265).to_json())
CHARACTERS = json.loads(Tokenizer.characters(["明月"]).to_json())


def set_at(path, value):
    def change(specification):
        *parents, last = path
        for key in parents:
            specification = specification[key]
        specification[last] = value

    return change


def test_kinds_and_bytes():
    assert kind_of(GOOD) == "bpe"
    assert kind_of(CHARACTERS) == "characters"
    assert token_table(CHARACTERS) == {0: b"<|endoftext|>", 1: "明".encode(), 2: "月".encode()}


def test_fingerprint_sees_what_changes_ids_and_nothing_else():
    original = fingerprint_of(GOOD)
    assert len(original) == 64
    assert set(original) <= set("0123456789abcdef")
    same, other = copy.deepcopy(GOOD), []
    same["post_processor"] = {"type": "ByteLevel"}
    same["truncation"] = {"max_length": 3}
    same["model"]["merges"] = [
        m if isinstance(m, str) else " ".join(m) for m in GOOD["model"]["merges"]
    ]
    same["model"]["vocab"] = dict(reversed(GOOD["model"]["vocab"].items()))
    assert fingerprint_of(same) == original
    for change in (
        set_at(["model", "vocab", "A"], 999),
        set_at(["model", "merges"], GOOD["model"]["merges"][::-1]),
        set_at(["model", "ignore_merges"], True),
        set_at(["added_tokens", 0, "special"], False),
        set_at(["pre_tokenizer"], {"type": "ByteLevel"}),
        set_at(["normalizer"], {"type": "NFC"}),
        set_at(["added_tokens", 0, "rstrip"], True),
    ):
        changed = copy.deepcopy(GOOD)
        change(changed)
        other.append(fingerprint_of(changed))
    assert len({original, *other}) == 8


# ── files made by others ────────────────────────────────────────────────────


def foreign(**parts):
    """Make a tokenizer as GPT-2's is made: its own split, its own special tokens."""
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    library.train_from_iterator(["low low lower 明月明月 it's 1234"] * 3, trainer)
    library.add_special_tokens(["<|endoftext|>", "<|pad|>"])
    library.add_tokens(["明月亮"])
    for name, part in parts.items():
        setattr(library, name, part)
    return library


TEXT = "low it's 1234 明月亮 lower\n\n  <|endoftext|>"


def test_a_gpt2_like_file_gives_the_same_ids():
    library = foreign()
    tokenizer = Tokenizer.from_json(library.to_str())
    assert tokenizer.kind == "bpe"
    assert tokenizer.vocab_size == library.get_vocab_size() == max(library.get_vocab().values()) + 1
    assert set(tokenizer.special_tokens) == {"<|endoftext|>", "<|pad|>"}
    assert tokenizer.end_id == library.token_to_id("<|endoftext|>")
    assert tokenizer.encode(TEXT, allow_special=True) == library.encode(TEXT).ids
    assert tokenizer.end_id not in tokenizer.encode(TEXT)
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert library.token_to_id("明月亮") in tokenizer.encode(TEXT)
    assert tokenizer.token_bytes(library.token_to_id("明月亮")) == "明月亮".encode()


def test_merges_written_the_old_way_load_too():
    specification = json.loads(foreign().to_str())
    model = specification["model"]
    model["merges"] = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    old = Tokenizer.from_json(json.dumps(specification))
    new = Tokenizer.from_json(foreign().to_str())
    assert old.fingerprint == new.fingerprint
    assert old.encode(TEXT) == new.encode(TEXT)


def test_nothing_is_added_and_nothing_is_cut():
    """Others' files may add a first token to each text, cut it short, or pad a batch."""
    library = foreign()
    end_id = library.token_to_id("<|endoftext|>")
    library.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", end_id)]
    )
    library.enable_truncation(max_length=3)
    library.enable_padding(length=5)
    tokenizer = Tokenizer.from_json(library.to_str())
    assert tokenizer.encode_batch(["low" * 50, ""]) == [tokenizer.encode("low" * 50), []]
    assert tokenizer.decode(tokenizer.encode("low" * 50)) == "low" * 50


def test_special_tokens_that_look_like_byte_symbols_keep_their_own_bytes():
    library = foreign()
    library.add_special_tokens(["<é>", "Ġ¤§"])
    tokenizer = Tokenizer.from_json(library.to_str())
    assert tokenizer.token_bytes(library.token_to_id("<é>")) == "<é>".encode()
    ids = tokenizer.encode("x<é>Ġ¤§", allow_special=True)
    assert len(ids) == 3
    assert tokenizer.decode(ids) == "x<é>Ġ¤§"


def test_ids_with_gaps():
    specification = json.loads(foreign().to_str())
    specification["model"]["vocab"]["A"] = 1000
    tokenizer = Tokenizer.from_json(json.dumps(specification))
    assert tokenizer.vocab_size == 1001
    assert tokenizer.encode("A") == [1000]
    assert tokenizer.decode([1000]) == "A"
    with pytest.raises(ValueError, match=r"token id 999 is unused in this tokenizer"):
        tokenizer.decode([999])


def test_merges_of_characters_without_bytes_are_refused():
    specification = copy.deepcopy(CHARACTERS)
    specification["model"]["vocab"]["明月"] = 3
    specification["model"]["merges"] = [["明", "月"]]
    with pytest.raises(
        ValueError, match=r"unsupported tokenizer \(model 'BPE', decoder \['Fuse'\]"
    ):
        Tokenizer.from_json(json.dumps(specification))


def test_the_ids_that_begin_a_text_are_those_of_the_file():
    assert Tokenizer.from_json(foreign().to_str()).start_ids == []
    library = foreign()
    end_id = library.token_to_id("<|endoftext|>")
    both = processors.TemplateProcessing(
        single="<|endoftext|> $A <|pad|>",
        special_tokens=[("<|endoftext|>", end_id), ("<|pad|>", end_id + 1)],
    )
    library.post_processor = processors.Sequence([processors.ByteLevel(), both])
    tokenizer = Tokenizer.from_json(library.to_str())
    assert tokenizer.start_ids == [end_id]
    assert tokenizer.encode("low", add_special=True)[:1] == [end_id]
