"""Each token counts once whatever the stride; the numbers are what the formula says."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.perplexity import (
    Perplexity,
    evaluate_documents,
    evaluate_shard,
    evaluate_text,
    evaluate_tokens,
    windows,
)
from gpt_model.config import GPTConfig
from gpt_model.model import GPT
from tokenization.tokenizer import Tokenizer
from training.batch import IGNORE_INDEX
from training.documents import Document
from training.shards import write_shards
from training.token_shard import TokenShard

TEXT = "白日依山尽，黄河入海流。abc " * 20


def tiny(vocab_size=13, **changes):
    fields = dict(vocab_size=vocab_size, max_seq_len=8, dim=16, n_layers=1, n_heads=2, dropout=0.2)
    return GPT(GPTConfig(**{**fields, **changes}))


@torch.no_grad()
def naive(model, tokens, context, stride):
    """Score position by position, each with the context its window gives it."""
    model.eval()
    total = 0.0
    for question in range(len(tokens) - 1):
        window = max(0, -(-(question + 1 - context) // stride)) * stride
        logits = model(torch.tensor([tokens[window : question + 1]])).logits[0, -1]
        total -= float(torch.log_softmax(logits.double(), -1)[tokens[question + 1]])
    return total / (len(tokens) - 1)


@settings(max_examples=40)
@given(st.integers(2, 40), st.integers(1, 8), st.integers(1, 8), st.integers(1, 5))
def test_every_target_once_and_in_order(n_tokens, context, stride, batch_size):
    stride = min(stride, context)
    tokens = np.arange(n_tokens)
    targets = [t[t != IGNORE_INDEX] for _, t in windows(tokens, context, stride, batch_size)]
    assert torch.cat(targets).tolist() == list(range(1, n_tokens))


@settings(max_examples=15)
@given(st.integers(2, 30), st.integers(1, 8), st.integers(1, 8))
def test_equals_scoring_one_by_one(n_tokens, context, stride):
    torch.manual_seed(n_tokens)
    model, stride = tiny(), min(stride, context)
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
    tokens = torch.randint(13, (n_tokens,)).tolist()
    result = evaluate_tokens(model, tokens, context=context, stride=stride, batch_size=3)
    assert result.n_tokens == n_tokens - 1
    assert math.isclose(result.loss, naive(model, tokens, context, stride), rel_tol=1e-5)


def test_smaller_strides_see_more():
    first_inputs = next(windows(np.arange(20), 8, 2, 4))[1]
    assert (first_inputs[0] != IGNORE_INDEX).all()
    assert ((first_inputs[1:] != IGNORE_INDEX) == (torch.arange(8) >= 6)).all()


def test_a_uniform_guess_has_the_vocabulary_as_perplexity():
    tokenizer = Tokenizer.characters([TEXT])
    model = tiny(tokenizer.vocab_size)
    torch.nn.init.zeros_(model.lm_head.weight)
    result = evaluate_text(model, tokenizer, TEXT)
    n_bytes = len(TEXT.encode())
    assert result.n_tokens == len(TEXT)
    assert result.n_bytes == n_bytes
    assert math.isclose(result.perplexity, tokenizer.vocab_size, rel_tol=1e-5)
    bits = len(TEXT) * math.log2(tokenizer.vocab_size) / n_bytes
    assert math.isclose(result.bits_per_byte, bits, rel_tol=1e-5)


def test_without_an_end_token_the_first_character_is_left_out_with_its_bytes():
    tokenizer = Tokenizer.characters([TEXT], special_tokens=())
    result = evaluate_text(tiny(tokenizer.vocab_size), tokenizer, TEXT)
    assert result.n_tokens == len(TEXT) - 1
    assert result.n_bytes == len(TEXT.encode()) - 3


def test_documents_are_joined_by_end_tokens_and_blank_ones_left_out():
    tokenizer = Tokenizer.characters([TEXT])
    model = tiny(tokenizer.vocab_size)
    result = evaluate_documents(model, tokenizer, ["abc ", "", "白日"])
    end = tokenizer.end_id
    joined = [end, *tokenizer.encode("abc "), end, *tokenizer.encode("白日")]
    assert result == evaluate_tokens(model, joined, n_bytes=10)
    assert result.n_tokens == 7


def test_a_shard_counts_bytes_as_training_does(tmp_path):
    tokenizer = Tokenizer.characters([TEXT])
    documents = [Document(f"{TEXT[: 30 + n]}", f"d{n}") for n in range(40)]
    write_shards(documents, tokenizer, tmp_path / "data", val_fraction=0.3)
    model = tiny(tokenizer.vocab_size)
    with TokenShard.open(tmp_path / "data", "val") as shard:
        result = evaluate_shard(model, shard)
        plain = evaluate_tokens(model, np.array(shard.tokens))
        assert result.n_tokens == len(shard) - 1
        expected = result.loss / math.log(2) / shard.bytes_per_token
    assert math.isclose(result.bits_per_byte, expected, rel_tol=1e-9)
    assert result.loss == plain.loss
    assert plain.bits_per_byte is None
    with (
        TokenShard.open(tmp_path / "data", "val") as shard,
        pytest.raises(
            ValueError, match=rf"made with {tokenizer.vocab_size} tokens.*vocab_size is 13"
        ),
    ):
        evaluate_shard(tiny(), shard)


def test_dropout_is_off_and_the_mode_comes_back():
    model = tiny().train()
    tokens = list(range(13)) * 3
    assert evaluate_tokens(model, tokens).loss == evaluate_tokens(model, tokens).loss
    assert model.training
    with pytest.raises(ValueError, match="outside the vocabulary"):
        evaluate_tokens(model, [99, 0])
    assert model.training
    assert not evaluate_tokens(model.eval(), tokens).n_bytes
    assert not model.training


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 9}, r"context must be an integer >= 1 and <= 8, got 9"),
        ({"context": 4, "stride": 5}, r"stride must be an integer >= 1 and <= 4, got 5"),
        ({"stride": 0}, "stride must be an integer >= 1"),
        ({"batch_size": 0}, "batch_size must be an integer >= 1, got 0"),
    ],
)
def test_limits_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        evaluate_tokens(tiny(), [1, 2, 3], **options)


def test_nothing_to_score_is_refused():
    with pytest.raises(ValueError, match="at least 2 tokens, got 1"):
        evaluate_tokens(tiny(), [1])
    tokenizer = Tokenizer.characters([TEXT])
    with pytest.raises(ValueError, match="the text is empty"):
        evaluate_text(tiny(tokenizer.vocab_size), tokenizer, "")
    with pytest.raises(ValueError, match=rf"tokenizer has {tokenizer.vocab_size} tokens, .* is 13"):
        evaluate_text(tiny(), tokenizer, TEXT)


def test_a_broken_model_is_said_to_be_broken():
    model = tiny()
    with torch.no_grad():
        model.lm_head.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="the model's loss is nan"):
        evaluate_tokens(model, [1, 2, 3])


def test_huge_losses_do_not_overflow_and_the_result_reads_well():
    assert Perplexity(800.0, 5).perplexity == math.inf
    assert str(Perplexity(math.log(2), 8, 4.0)) == (
        "loss 0.6931, perplexity 2.00, 2.0000 bits per byte (8 tokens)"
    )
    assert "bits" not in str(Perplexity(1.0, 8))
