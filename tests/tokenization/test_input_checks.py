"""Bad input is refused at the door, with its value, its place and what to do."""

import pytest

from tokenization.input_checks import (
    check_special_tokens,
    check_text,
    check_vocab_size,
    checked_texts,
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ab\ud83d", r"text holds the lone surrogate U\+D83D at offset 2"),
        ("\udc80月", r"U\+DC80 at offset 0"),
        (b"bytes", "text must be a str, got bytes"),
        (None, "text must be a str, got NoneType"),
    ],
)
def test_check_text(text, message):
    with pytest.raises(ValueError, match=message):
        check_text(text, "text")


def test_whole_surrogate_pairs_do_not_exist_in_python_and_emoji_are_fine():
    check_text("🙂\ufffd\x00\U0010ffff", "text")


def test_checked_texts_is_lazy_and_names_the_place():
    checked = checked_texts(iter(["a", "b", 3, "d"]))
    assert [next(checked), next(checked)] == ["a", "b"]
    with pytest.raises(ValueError, match=r"texts\[2\] must be a str, got int"):
        next(checked)


def test_one_str_is_not_a_list_of_texts():
    with pytest.raises(ValueError, match=r"got one str; give \[text\]"):
        list(checked_texts("abc"))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a"], "at least 2 characters, got 'a'"),
        ([""], "at least 2 characters, got ''"),
        (["<a>", "<b>", "<a>"], "'<a>' is given 2 times"),
        ("<|endoftext|>", r"must be a list of names, got one str '<\|endoftext\|>'"),
        ([3], r"special_tokens\[0\] must be a str, got int"),
        (["<\ud800>"], r"special_tokens\[0\] holds the lone surrogate"),
    ],
)
def test_check_special_tokens(names, message):
    with pytest.raises(ValueError, match=message):
        check_special_tokens(names)


def test_special_tokens_keep_their_order():
    assert check_special_tokens(("<|b|>", "<|a|>")) == ["<|b|>", "<|a|>"]


@pytest.mark.parametrize("value", [258, 0, -1])
def test_vocab_size_below_the_bytes(value):
    with pytest.raises(ValueError, match=rf"at least 259 \(256 bytes \+ 3 special.*got {value}$"):
        check_vocab_size(value, n_special=3)


@pytest.mark.parametrize("value", [True, 1000.0, "1000", None])
def test_vocab_size_is_an_integer(value):
    with pytest.raises(ValueError, match="vocab_size must be an integer"):
        check_vocab_size(value, n_special=1)


def test_vocab_size_at_the_limit():
    assert check_vocab_size(259, n_special=3) == 259
