"""Streaming shows whole characters only, and nothing is lost or changed by it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenization.stream_decoder import StreamDecoder
from tokenization.tokenizer import Tokenizer

TOKENIZER = Tokenizer.train_bpe(["明月明月，举头望明月。low low lower 🙂🙂"], 285)
FEW_MERGES = Tokenizer.train_bpe([""], 257)  # every byte is a token
TOKENIZERS = pytest.mark.parametrize("tokenizer", [TOKENIZER, FEW_MERGES], ids=["merges", "bytes"])


def push_all(stream, ids):
    return [stream.push(token_id) for token_id in ids]


@TOKENIZERS
@given(text=st.text())
def test_valid_text_streams_without_replacement_characters(tokenizer, text):
    stream = tokenizer.stream()
    shown = push_all(stream, tokenizer.encode(text))
    assert "".join(shown) == text
    assert stream.flush() == ""
    assert sum(part.count("\ufffd") for part in shown) == text.count("\ufffd")


@TOKENIZERS
@given(data=st.data())
def test_any_ids_stream_to_what_decode_says(tokenizer, data):
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=40))
    stream = tokenizer.stream()
    assert "".join(push_all(stream, ids)) + stream.flush() == tokenizer.decode(ids)


@given(st.binary(max_size=40))
def test_any_bytes_stream_to_what_decode_says(data):
    stream = StreamDecoder(lambda byte: bytes([byte]))
    assert "".join(push_all(stream, data)) + stream.flush() == data.decode("utf-8", "replace")


def test_each_character_appears_with_its_last_byte():
    stream = StreamDecoder(lambda byte: bytes([byte]))
    shown = push_all(stream, "aé月🙂".encode())
    assert shown == ["a", "", "é", "", "", "月", "", "", "", "🙂"]


def test_half_a_character_waits_for_flush():
    stream = FEW_MERGES.stream()
    ids = FEW_MERGES.encode("月月")[:-1]
    assert push_all(stream, ids) == ["", "", "月", "", ""]
    assert stream.flush() == "\ufffd"
    assert stream.flush() == ""
    assert push_all(stream, FEW_MERGES.encode("月")) == ["", "", "月"]  # ready for the next text


def test_an_impossible_byte_is_shown_at_once():
    stream = StreamDecoder(lambda byte: bytes([byte]))
    assert push_all(stream, b"\xffa\xe6a") == ["\ufffd", "a", "", "\ufffda"]


def test_skipped_ids_are_silent_even_inside_a_character():
    ids = FEW_MERGES.encode("月")
    mixed = [ids[0], FEW_MERGES.end_id, *ids[1:], FEW_MERGES.end_id]
    stream = FEW_MERGES.stream(skip_special=True)
    assert "".join(push_all(stream, mixed)) == "月" == FEW_MERGES.decode(mixed, skip_special=True)
    stream = FEW_MERGES.stream()
    assert "".join(push_all(stream, [FEW_MERGES.end_id])) == "<|endoftext|>"


def test_a_wrong_id_is_refused_and_changes_nothing():
    stream = FEW_MERGES.stream()
    first, second, third = FEW_MERGES.encode("月")
    stream.push(first)
    with pytest.raises(ValueError, match="token id 257 is outside"):
        stream.push(257)
    assert stream.push(second) + stream.push(third) == "月"


def test_characters_stream_one_by_one():
    tokenizer = Tokenizer.characters(["明月🙂"])
    assert push_all(tokenizer.stream(), tokenizer.encode("🙂明月")) == ["🙂", "明", "月"]
