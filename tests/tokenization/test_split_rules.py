"""Splits of others: learned with, written down, and never slow on text without a break."""

import json
import random
import time

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from gpt_model.gguf_tokenizer import tokenizer_metadata
from tokenization.encoder import Encoder, parse
from tokenization.fast_encoder import FastEncoder
from tokenization.library_backend import split_parts
from tokenization.split_rules import GPT2, LONGEST_LEARNED, OWN, SPLITS
from tokenization.text_pieces import split_text
from tokenization.tokenizer import Tokenizer

TEXTS = [
    "The quick brown fox's 12345 jumps!\n\n  It's 3.14159, isn't it?  WE'LL see",
    "举头望明月，低头思故乡。用Python写3个🙂🙃👩‍👩‍👧",
    "def f(x):\n        return x**2  # 平方\n\tif not x:\r\n    pass\n",
    "naïve café; e\u0301te\u0301 हिन्दी 한국어 \u3000全角　空格",
    "a" * 200 + "^" * 90 + " " * 70 + "\n" * 9,
]


@pytest.mark.parametrize("name", SPLITS)
def test_what_is_learned_with_a_split_is_exported_under_its_name(name):
    tokenizer = Tokenizer.train_bpe(TEXTS * 3, 420, split=name)
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    if name == OWN:
        with pytest.raises(ValueError, match="--tokenizer bpe:llama-bpe"):
            tokenizer_metadata(tokenizer, 420)
    else:
        assert tokenizer_metadata(tokenizer, 420)["tokenizer.ggml.pre"] == name
    values = json.loads(tokenizer.to_json())
    assert values["pre_tokenizer"]["pretokenizers"] == SPLITS[name].steps
    assert values["model"]["ignore_merges"] == SPLITS[name].ignore_merges
    # no token crosses a boundary of the rule
    pieces = [
        piece for text in TEXTS for piece, _ in split_parts(SPLITS[name]).pre_tokenize_str(text)
    ]
    learned = [token for token, i in values["model"]["vocab"].items() if i > 256]
    assert learned
    assert all(any(token in piece for piece in pieces) for token in learned)


@pytest.mark.parametrize("name", SPLITS)
def test_short_pieces_are_learned_as_the_library_alone_learns_them(name):
    """The bound on what is learned changes nothing where every piece is short."""
    texts = [text for text in TEXTS if max(map(len, split_text(text))) < 20]
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = split_parts(SPLITS[name])
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(texts * 3, trainer)
    expected = json.loads(library.to_str())["model"]["merges"]
    found = json.loads(Tokenizer.train_bpe(texts * 3, 400, split=name).to_json())["model"]["merges"]
    assert found == expected


def test_byte_level_has_the_pattern_of_gpt2_inside():
    inside = split_parts(SPLITS["gpt-2"])
    written = pre_tokenizers.Split(tokenizers.Regex(GPT2), "isolated")
    for text in TEXTS:
        spans = [span for _, span in inside.pre_tokenize_str(text)]
        assert spans == [span for _, span in written.pre_tokenize_str(text)]


@pytest.mark.parametrize("name", ["llama-bpe", "qwen2"])
def test_a_line_without_a_break_does_not_make_learning_slow(name):
    """Without the bound this takes minutes: every merge would walk the whole line again."""
    junk = "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz", k=200_000))
    start = time.process_time()
    tokenizer = Tokenizer.train_bpe([*TEXTS, junk], 4000, split=name)
    assert time.process_time() - start < 3  # without the bound: twenty
    assert (
        max(len(tokenizer.token_bytes(i)) for i in range(tokenizer.vocab_size)) <= LONGEST_LEARNED
    )
    assert tokenizer.decode(tokenizer.encode(junk)) == junk


@pytest.mark.parametrize("name", SPLITS)
def test_the_fast_path_agrees_or_is_not_taken(name):
    text = Tokenizer.train_bpe(TEXTS * 3, 420, split=name).to_json()
    fast = FastEncoder.build(parse(text))
    assert (fast is not None) == (name in (OWN, "gpt-2", "llama-bpe", "qwen2"))
    if fast is not None:
        slow = Encoder(parse(text), text, name).plain.encode_batch(TEXTS, add_special_tokens=False)
        pairs = zip(fast.encode(TEXTS), slow, strict=True)
        assert all(found in (None, expected.ids) for found, expected in pairs)


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="split must be one of own, gpt-2, .*'qwen'"):
        Tokenizer.train_bpe(TEXTS, 300, split="qwen")
