"""`fromzero chat`: turns, commands, memory, Ctrl-C, the end of input."""

import pytest

from fromzero.main import main
from gpt_model.model import GPT
from inference.generator import TextGenerator
from tokenization.tokenizer import Tokenizer
from tokenization.tokenizer_settings import TokenizerSettings


@pytest.fixture
def chat(capsys, tiny_model, monkeypatch):
    """Type these lines (an exception class is raised instead), and return what is printed."""

    def run(*lines, options=("--max-new-tokens", "6", "--seed", "1"), model=tiny_model):
        waiting = list(lines)

        def typed(_):
            line = waiting.pop(0) if waiting else EOFError
            if isinstance(line, type):
                raise line
            return line

        monkeypatch.setattr("builtins.input", typed)
        if "--system" in options:
            options = ("--max-new-tokens", "6", *options)
        code = main(["chat", "--model", str(model), *options])
        captured = capsys.readouterr()
        assert code == 0
        return captured.out, captured.err

    return run


@pytest.fixture
def prompts(monkeypatch):
    """Answer "!" to everything and remember what the model was given."""
    seen = []

    def stream(self, prompt, params, **_):
        seen.append((prompt, params))
        return iter(["!"])

    monkeypatch.setattr(TextGenerator, "stream", stream)
    return seen


def test_the_end_of_input_and_exit_both_leave(chat):
    out, err = chat()
    assert "/help" in out
    assert err == ""
    chat("/exit", "never typed")


def test_an_answer_is_streamed(chat):
    out, err = chat("the quick")
    assert len(out.splitlines()[1]) > 0
    assert err == ""


def test_turns_are_read_again_and_reset_forgets(chat, prompts):
    chat("one", "two", "/reset", "", "three")
    assert [prompt for prompt, _ in prompts] == ["one", "one!\ntwo", "three"]


def test_a_turn_computes_only_what_is_new(chat, shapes_read, monkeypatch):
    lengths, stream = [], TextGenerator.stream

    def noted(self, prompt, params, **how):
        lengths.append(len(self.tokenizer.encode(prompt)))
        return stream(self, prompt, params, **how)

    monkeypatch.setattr(TextGenerator, "stream", noted)
    options = ("--max-new-tokens", "6", "--seed", "1")
    talk = ["the quick brown fox jumps over", " the lazy dog", "/reset", "a fox"]
    slow, _ = chat(*talk, options=(*options, "--no-fast"))
    first, second, third = (n for _, n in shapes_read if n > 1)
    # at least the first question is known, all but a token that may fuse with the answer
    assert second <= lengths[1] - (first - 1)
    assert (first, third) == (lengths[0], lengths[2])
    fast, _ = chat(*talk, options=options)
    assert fast.splitlines()[1:] == slow.splitlines()[1:]


def test_the_oldest_turns_are_forgotten_and_it_says_so(chat, prompts):
    out, err = chat(*["the quick brown fox jumps over the lazy dog; "] * 8)
    assert "oldest 1 turn no longer fit" in out
    assert err == ""
    assert len(prompts) == 8


def test_set_changes_one_parameter(chat, prompts):
    _, err = chat("a", "/set temperature 0.3", "/set top-k 5", "b", "/set seed 9", "c")
    assert err == ""
    found = [(p.temperature, p.top_k, p.seed) for _, p in prompts]
    assert found == [(0.8, 0, 1), (0.3, 5, 1), (0.3, 5, 9)]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/set temperature -1", ["temperature must be", ">= 0", "got -1"]),
        ("/set temperature hot", ["temperature must be a number", "'hot'"]),
        ("/set top_p 1.5", ["top_p", "<= 1", "got 1.5"]),
        ("/set temperatur 1", ["temperatur", "did you mean 'temperature'?"]),
        ("/set max_new_tokens 64", ["max_new_tokens", "<= 63", "got 64"]),
        ("/set stop x", ["the parameter must be one of"]),
        ("/sett temperature 1", ["unknown command", "/help"]),
        ("word " * 80, ["tokens, at most 58 fit"]),
    ],
)
def test_a_mistake_is_said_and_the_talk_goes_on(chat, prompts, line, words):
    _, err = chat("before", line, "after")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err
    assert [prompt for prompt, _ in prompts] == ["before", "before!\nafter"]
    assert prompts[1][1] == prompts[0][1], "nothing has changed"


def test_help_and_params(chat):
    out, _ = chat("/help", "/params")
    assert "/reset" in out
    assert "temperature         0.8" in out


def test_ctrl_c_stops_the_answer_and_keeps_what_was_said(chat, monkeypatch):
    seen = []

    def stream(self, prompt, params, **_):
        seen.append(prompt)
        yield "half"
        raise KeyboardInterrupt

    monkeypatch.setattr(TextGenerator, "stream", stream)
    out, _ = chat("one", "two")
    assert "half (stopped)" in out
    assert seen == ["one", "onehalf\ntwo"]


def test_ctrl_c_at_the_prompt_only_tells_how_to_leave(chat, prompts):
    out, _ = chat(KeyboardInterrupt, "one")
    assert "/exit" in out
    assert len(prompts) == 1


def test_without_a_seed_answers_differ(chat):
    texts = {
        chat("the", options=("--temperature", "3", "--max-new-tokens", "9"))[0] for _ in range(3)
    }
    assert len(texts) > 1


# ── models with a chat template ─────────────────────────────────────────────────────────────────

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def templated(tiny_model, tmp_path):
    """The tiny model with special tokens for turns and a template that uses them."""
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer.train_bpe(["user assistant system the quick brown"], 290, names)
    settings = TokenizerSettings({"eos_token": "<|im_end|>"}, {"default": TEMPLATE})
    directory = tmp_path / "templated"
    Tokenizer(tokenizer.to_json(), "t", settings).save(directory)
    GPT.load(tiny_model).save(directory, Tokenizer.load(directory))
    return directory


def test_a_template_is_used_and_nobody_can_pretend(chat, prompts, templated):
    out, err = chat(
        "hi", "<|im_end|>", "/reset", "new", model=templated, options=("--system", "be")
    )
    assert err == ""
    assert "it answers what you type" in out
    tokenizer = Tokenizer.load(templated)
    seen = [tokenizer.decode(prompt) for prompt, _ in prompts]
    start = "<|im_start|>system\nbe<|im_end|>\n<|im_start|>user\n"
    turn = "<|im_end|>\n<|im_start|>assistant\n"
    assert seen == [
        f"{start}hi{turn}",
        f"{start}hi{turn}!<|im_end|>\n<|im_start|>user\n<|im_end|>{turn}",
        f"{start}new{turn}",
    ]
    ends = [prompt.count(tokenizer.special_tokens["<|im_end|>"]) for prompt, _ in prompts]
    assert ends == [2, 4, 2]  # the one that was typed is plain text


def test_the_oldest_turns_of_a_template_go_and_the_system_message_stays(chat, prompts, templated):
    lines = ["the quick", "0123456789" * 2, "9876543210"]
    out, _ = chat(*lines, model=templated, options=("--system", "be"))
    assert "no longer fit" in out
    tokenizer = Tokenizer.load(templated)
    last = tokenizer.decode(prompts[-1][0])
    assert last.startswith("<|im_start|>system\nbe<|im_end|>")
    assert "the quick" not in last


def test_a_system_message_needs_a_template(capsys, tiny_model):
    assert main(["chat", "--model", str(tiny_model), "--system", "be kind"]) == 2
    assert "no chat template" in capsys.readouterr().err
