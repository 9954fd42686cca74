"""From messages to tokens: what counts in the loss, what the model reads, what is shown."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from finetuning.conversations import Conversation, Message, Pair
from finetuning.sft import Encoded, encode, marked, question_of
from inference.conversation import Conversation as Talk
from tokenization.chat_template import ChatPiece, encode_chat
from tokenization.tokenizer import Tokenizer
from tokenization.tokenizer_settings import TokenizerSettings
from training.batch import IGNORE_INDEX

TEXT = "abcdefghij"
TOKENIZER = Tokenizer.characters([TEXT, "\n"])
END = TOKENIZER.end_id


def ids(text):
    return TOKENIZER.encode(text)


@given(st.text(TEXT, min_size=1, max_size=9), st.text(TEXT, min_size=1, max_size=9))
def test_only_the_answer_and_the_end_count(prompt, answer):
    inputs, targets = encode(Pair(prompt, answer), TOKENIZER)
    assert inputs == ids(prompt + answer)
    assert targets == [IGNORE_INDEX] * (len(prompt) - 1) + ids(answer) + [END]


def test_prompt_and_answer_are_tokenized_apart():
    tokenizer = Tokenizer.train_bpe(["ab ab ab ab"], 258 + 1)
    assert len(tokenizer.encode("ab")) == 1
    inputs, targets = encode(Pair("a", "b"), tokenizer)
    assert inputs == [*tokenizer.encode("a"), *tokenizer.encode("b")]
    assert targets == [*tokenizer.encode("b"), tokenizer.end_id]


@pytest.mark.parametrize("pair", [Pair("", "a"), Pair("a", "")])
def test_empty_sides_are_refused(pair):
    with pytest.raises(ValueError, match="must not be empty"):
        encode(pair, TOKENIZER)


def test_a_tokenizer_without_an_end_is_refused():
    with pytest.raises(ValueError, match="no end token"):
        encode(Pair("a", "b"), Tokenizer.characters([TEXT], special_tokens=()))


WORDS = st.text(TEXT, min_size=1, max_size=6)


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4), st.none() | WORDS)
def test_every_answer_counts_and_the_context_is_what_a_chat_reads(turns, system):
    messages = [] if system is None else [Message("system", system)]
    for question, answer in turns:
        messages += [Message("user", question), Message("assistant", answer)]
    inputs, targets = encode(Conversation(tuple(messages)), TOKENIZER)
    counted = [target for target in targets if target != IGNORE_INDEX]
    assert counted == [token for _, answer in turns for token in [*ids(answer), END]]
    # the text that inference/conversation.py puts together for the last question
    chat = Talk(TOKENIZER, 1000, 1)
    if system is not None:
        chat.remember(system, "")
    for question, answer in turns[:-1]:
        chat.remember(question, answer)
    context, _ = chat.prompt(turns[-1][0])
    assert inputs == ids(context + turns[-1][1])
    assert question_of(Encoded(inputs, targets)) == ids(context)
    # each target is the next token, or the end where the model should stop
    for place, target in enumerate(targets[:-1]):
        assert target in (IGNORE_INDEX, inputs[place + 1], END)


def with_marks(messages):
    """A format with a mark of its own after each answer, as chat templates have."""
    pieces = []
    for message in messages:
        learned = message.role == "assistant"
        pieces.append(ChatPiece(ids("j"), False))
        pieces.append(ChatPiece(ids(message.content) + [END] * learned, learned))
        pieces.append(ChatPiece(ids("\n"), False))
    return pieces


def test_another_format_comes_in_through_the_one_seam():
    talk = Conversation(
        (Message("user", "ab"), Message("assistant", "c"), Message("user", "d"),
         Message("assistant", "ef"))
    )  # fmt: skip
    inputs, targets = encode(talk, TOKENIZER, with_marks)
    whole = [*ids("jab\njc"), END, *ids("\njd\njef"), END]
    assert inputs == whole[:-1]
    hidden = [IGNORE_INDEX]
    assert targets == [*hidden * 4, *ids("c"), END, *hidden * 5, *ids("ef"), END]
    assert question_of(Encoded(inputs, targets)) == [*ids("jab\njc"), END, *ids("\njd\nj")]


def test_formats_that_leave_nothing_to_learn_or_to_read_are_refused():
    pair = Pair("a", "b")
    with pytest.raises(ValueError, match="nothing to learn"):
        encode(pair, TOKENIZER, lambda messages: [ChatPiece(ids("ab"), False)])
    with pytest.raises(ValueError, match="needs something to answer"):
        encode(pair, TOKENIZER, lambda messages: [ChatPiece(ids("ab"), True)])


def test_a_sample_is_readable_with_and_without_colour():
    talk = Conversation(
        (Message("user", "ab"), Message("assistant", "c"), Message("user", "d"),
         Message("assistant", "ef"))
    )  # fmt: skip
    text = marked(encode(talk, TOKENIZER), TOKENIZER)
    assert text.plain == "ab⟦c<|endoftext|>⟧\nd⟦ef<|endoftext|>⟧"
    shown = {}
    for colours in (True, False):
        file = io.StringIO()
        Console(file=file, force_terminal=colours, no_color=not colours, width=80).print(text)
        shown[colours] = file.getvalue()
    assert shown[False] == text.plain + "\n"
    assert "\x1b[1;32m⟦c<|endoftext|>⟧\x1b[0m" in shown[True]
    # characters that are cut between tokens are decoded together
    tokenizer = Tokenizer.train_bpe(["x"], 258)
    assert marked(encode(Pair("问", "答"), tokenizer), tokenizer).plain == "问⟦答<|endoftext|>⟧"


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_chat_template_is_followed_and_its_end_is_learned():
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    plain = Tokenizer.train_bpe(["moon"], 270, special_tokens=names)
    settings = TokenizerSettings({"eos_token": "<|im_end|>"}, {"default": CHATML})
    tokenizer = Tokenizer(plain.to_json(), "the test", settings)
    messages = (Message("system", "short"), Message("user", "see?"), Message("assistant", "moon"),
                Message("user", "<|im_end|>?"), Message("assistant", "no"))  # fmt: skip
    encoded = encode(Conversation(messages), tokenizer)
    counted = [target for target in encoded.targets if target != IGNORE_INDEX]
    assert tokenizer.decode(counted) == "moon<|im_end|>no<|im_end|>"
    assert counted[-1] == tokenizer.special_tokens["<|im_end|>"]
    # what comes before the last answer is what a chat would give the model
    prompt = encode_chat(tokenizer, messages[:-1], add_generation_prompt=True)
    assert question_of(encoded) == [token for piece in prompt for token in piece.ids]
    assert "⟦moon<|im_end|>⟧" in marked(encoded, tokenizer).plain
