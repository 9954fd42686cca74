"""`fromzero chat`: turns, commands, memory, Ctrl-C, the end of input."""

import pytest

from fromzero.main import main
from inference.generator import TextGenerator


@pytest.fixture
def chat(capsys, tiny_model, monkeypatch):
    """Type these lines (an exception class is raised instead), and return what is printed."""

    def run(*lines, options=("--max-new-tokens", "6", "--seed", "1")):
        waiting = list(lines)

        def typed(_):
            line = waiting.pop(0) if waiting else EOFError
            if isinstance(line, type):
                raise line
            return line

        monkeypatch.setattr("builtins.input", typed)
        code = main(["chat", "--model", str(tiny_model), *options])
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
