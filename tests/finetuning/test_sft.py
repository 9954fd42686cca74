"""Pairs from a file, the mask of the prompt, batches as a pure function of (seed, index)."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetuning.sft import Pair, PairBatches, encode_pair, read_pairs
from gpt_model.config import GPTConfig
from gpt_model.model import GPT
from tokenization.tokenizer import Tokenizer
from training.batch import IGNORE_INDEX

TEXT = "abcdefghij"
TOKENIZER = Tokenizer.characters([TEXT])
END = TOKENIZER.end_id
PAIRS = [Pair("abc", "de"), Pair("a", "f"), Pair("hijab", "c"), Pair("ff", "gggg"), Pair("b", "a")]


def ids(text):
    return TOKENIZER.encode(text)


@given(st.text(TEXT, min_size=1, max_size=9), st.text(TEXT, min_size=1, max_size=9))
def test_only_the_answer_and_the_end_count(prompt, answer):
    inputs, targets = encode_pair(Pair(prompt, answer), TOKENIZER)
    assert inputs == ids(prompt + answer)
    assert targets == [IGNORE_INDEX] * (len(prompt) - 1) + ids(answer) + [END]


def test_prompt_and_answer_are_tokenized_apart():
    tokenizer = Tokenizer.train_bpe(["ab ab ab ab"], 258 + 1)
    assert len(tokenizer.encode("ab")) == 1
    inputs, targets = encode_pair(Pair("a", "b"), tokenizer)
    assert inputs == [*tokenizer.encode("a"), *tokenizer.encode("b")]
    assert targets == [*tokenizer.encode("b"), tokenizer.end_id]


@pytest.mark.parametrize("pair", [Pair("", "a"), Pair("a", "")])
def test_empty_sides_are_refused(pair):
    with pytest.raises(ValueError, match="must not be empty"):
        encode_pair(pair, TOKENIZER)


def test_a_tokenizer_without_an_end_is_refused():
    with pytest.raises(ValueError, match="no end token"):
        encode_pair(PAIRS[0], Tokenizer.characters([TEXT], special_tokens=()))


def test_every_pair_once_in_each_epoch_in_an_order_of_its_own():
    batches = PairBatches(PAIRS, TOKENIZER, 2, 16, seed=3)
    seen = [number for index in range(50) for number in batches(index).window_ids]
    epochs = [seen[first : first + 5] for first in range(0, 100, 5)]
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 10


def test_a_batch_is_a_pure_function_of_seed_and_index():
    first, second = (PairBatches(PAIRS, TOKENIZER, 3, 16, seed=9) for _ in range(2))
    late = [second(index).window_ids for index in (7, 2, 5)]
    assert late == [first(index).window_ids for index in (7, 2, 5)]
    assert any(
        PairBatches(PAIRS, TOKENIZER, 3, 16, seed=10)(index).window_ids != first(index).window_ids
        for index in range(4)
    )
    with pytest.raises(ValueError, match="index must be an integer >= 0, got -1"):
        first(-1)


def test_rows_are_the_pairs_padded_on_the_right():
    batch = PairBatches(PAIRS, TOKENIZER, 5, 16)(0)
    assert batch.inputs.shape == batch.targets.shape == (5, 6)
    for row, number in enumerate(batch.window_ids):
        inputs, targets = encode_pair(PAIRS[number], TOKENIZER)
        assert batch.inputs[row, : len(inputs)].tolist() == inputs
        assert batch.targets[row, : len(targets)].tolist() == targets
        assert (batch.targets[row, len(targets) :] == IGNORE_INDEX).all()
    assert batch.inputs.dtype == batch.targets.dtype == torch.int64
    assert batch.n_targets == sum(len(pair.answer) + 1 for pair in PAIRS)


def test_padding_changes_neither_loss_nor_gradient():
    model = GPT(
        GPTConfig(vocab_size=TOKENIZER.vocab_size, max_seq_len=16, dim=16, n_layers=2, n_heads=2)
    )

    def gradients(batches):
        model.zero_grad()
        loss = sum(model(b.inputs, b.targets, reduction="sum").loss for b in batches)
        loss.backward()
        return loss.detach(), [parameter.grad.clone() for parameter in model.parameters()]

    together = gradients([PairBatches(PAIRS, TOKENIZER, 5, 16)(0)])
    alone = gradients([PairBatches([pair], TOKENIZER, 1, 16)(0) for pair in PAIRS])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_a_held_out_pass_visits_each_pair_once_in_order():
    batches = list(PairBatches(PAIRS, TOKENIZER, 2, 16).once())
    assert [batch.window_ids for batch in batches] == [(0, 1), (2, 3), (4,)]


def test_too_long_is_refused_or_skipped_never_cut():
    with pytest.raises(ValueError, match=r"2 of 5 pairs .* max_length 5 tokens \(the longest: 6\)"):
        PairBatches(PAIRS, TOKENIZER, 2, 5)
    batches = PairBatches(PAIRS, TOKENIZER, 2, 5, too_long="skip")
    assert (len(batches), batches.n_skipped) == (3, 2)
    assert [batch.window_ids for batch in batches.once()] == [(0, 1), (4,)]
    with pytest.raises(ValueError, match=r"no pair is left of 5: max_length is 1 "):
        PairBatches(PAIRS, TOKENIZER, 2, 1, too_long="skip")
    with pytest.raises(ValueError, match="too_long must be one of refuse, skip"):
        PairBatches(PAIRS, TOKENIZER, 2, 5, too_long="cut")


def write(tmp_path, text):
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(text.encode("utf-8"))
    return path


def test_pairs_are_read_as_they_stand(tmp_path):
    path = write(
        tmp_path,
        '\ufeff{"prompt": "问：\\n", "answer": "答 "}\r\n\r\n{"prompt":"a","answer":"b","x":1}',
    )
    assert read_pairs(path) == [Pair("问：\n", "答 "), Pair("a", "b")]
    path = write(tmp_path, '{"question": "a", "reply": "b"}')
    assert read_pairs(path, prompt_key="question", answer_key="reply") == [Pair("a", "b")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no pairs; write one JSON object per line"),
        ("\n \n", "holds no pairs"),
        ('{"prompt": "a", "answer": "b"}\n{"prompt": ', r"line 2 of .* is not valid JSON.*column"),
        ('["a", "b"]', "line 1 of .* must hold a JSON object, got list"),
        ('{"prompt": "a", "anwser": "b"}', "no key 'answer', only .*; did you mean 'anwser'"),
        ("{}", "no key 'prompt', only nothing"),
        ('{"prompt": "a", "answer": null}', "line 1 .*answer must be a non-empty string, got None"),
        ('{"prompt": "a", "answer": 4}', "answer must be a non-empty string, got 4"),
        ('{"prompt": "", "answer": "b"}', "prompt must be a non-empty string, got ''"),
    ],
)  # fmt: skip
def test_bad_files_are_refused_with_line_and_key(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_pairs(write(tmp_path, text))


def test_bad_utf8_and_missing_files_are_named(tmp_path):
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "caf\xe9", "answer": "b"}')
    with pytest.raises(
        ValueError, match=r"latin\.jsonl is not valid UTF-8: byte 0xe9 at offset 15"
    ):
        read_pairs(tmp_path / "latin.jsonl")
    with pytest.raises(ValueError, match="does not exist"):
        read_pairs(tmp_path / "nothing.jsonl")
