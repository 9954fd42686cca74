"""`fromzero learn`, as a learner types it."""

import json
import threading
import time

import pytest

from course.child_process import Runner
from course.exercise import find, without_marks
from course.watching import watch_file
from fromzero import learn
from fromzero.main import main

pytestmark = pytest.mark.usefixtures("forked_answers")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def say(capsys, *words):
    code = main(["learn", *words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_from_the_first_lesson_to_the_solution(here, capsys):
    code, out, _ = say(capsys, "next")
    assert code == 0
    assert "QKᵀ / √d" in out
    assert "attention_01.py" in out
    file = here / "my_llm" / "attention_01.py"
    code, out, _ = say(capsys, "check")
    assert code == 1
    assert "还没有写完" in out
    code, _, err = say(capsys, "hint")
    assert code == 2
    assert "attempt of your own" in err
    code, _, err = say(capsys, "solution")
    assert code == 2
    assert "not solved yet" in err

    wrong = file.read_text(encoding="utf-8").replace("raise NotImplementedError", "return q @ k.mT")
    file.write_text(wrong, encoding="utf-8")
    code, out, _ = say(capsys, "check", "--json")
    found = json.loads(out)
    assert (code, found["mistakes"], found["passed"]) == (1, ["ATTN-01"], False)
    code, out, _ = say(capsys, "check", "attention.01", "--lang", "en")
    assert "ATTN-01 no division by √d" in out
    assert "transformer_basics/attention.py" in out
    code, out, _ = say(capsys, "hint")
    assert "1/3" in out
    assert "`@` sums over" in out  # the language is remembered

    file.write_text(wrong.replace("k.mT", "k.mT / q.shape[-1] ** 0.5"), encoding="utf-8")
    code, out, _ = say(capsys, "check")
    assert code == 0
    assert "✓ attention.01" in out
    assert "fromzero learn next" in out
    assert not (here / "my_llm" / "attention_02.py").exists()  # never ahead by itself
    code, out, _ = say(capsys, "solution")
    assert code == 0
    assert "math.sqrt(width)" in out
    code, out, _ = say(capsys, "list")
    assert "1 of" in out
    code, out, _ = say(capsys, "next")
    assert (here / "my_llm" / "attention_02.py").exists()
    code, out, _ = say(capsys, "report")
    assert (here / "my_llm" / "report.html").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("check", "atention.01"), "did you mean 'attention.01'"),
        (("check", "attention.99"), "no exercise 'attention.99'"),
        (("check", "attention.02"), "open it with: fromzero learn open attention.02"),
        (("open", "attention.01", "attention.02"), "one exercise at a time"),
        (("next", "attention.01"), "to open one"),
        (("chekc",), "chekc"),
    ],
)
def test_slips_get_one_line(here, capsys, words, said):
    code, out, err = say(capsys, *words)
    assert code == 2
    assert out == ""
    assert said in err


def test_give_up_and_reset(here, capsys):
    say(capsys, "open", "attention.04")
    code, out, _ = say(capsys, "solution", "--give-up")
    assert code == 0
    assert ".tril(past)" in out
    (here / "my_llm" / "attention_04.py").write_text("mine", encoding="utf-8")
    code, out, _ = say(capsys, "reset")
    assert "attention_04.old1.py" in out
    assert (here / "my_llm" / "attention_04.old1.py").read_text(encoding="utf-8") == "mine"


def test_watching_checks_on_every_save(here, capsys):
    """The file is saved while the watch goes on, in the way of editors that replace files."""
    main(["learn", "open", "attention.01"])
    capsys.readouterr()
    file = here / "my_llm" / "attention_01.py"
    solution = without_marks(find("attention.01").solution)
    texts = ["def attention_scores(q, k):\n    return q @ k.mT\n", solution]
    seen = []

    def checked(path):
        seen.append(path.read_text(encoding="utf-8"))

    def saver():
        for number, text in enumerate(texts):
            wait_for(lambda n=number: len(seen) > n)
            other = file.with_suffix(".tmp")
            other.write_text(text, encoding="utf-8")
            other.replace(file)

    thread = threading.Thread(target=saver)
    with Runner() as runner:
        thread.start()
        limit = time.monotonic() + 60
        watch_file(
            lambda: file, checked, lambda: False, runner,
            until=lambda: len(seen) >= 3 or time.monotonic() > limit,
        )  # fmt: skip
    thread.join()
    assert seen[1:] == texts


def wait_for(condition):
    limit = time.monotonic() + 30
    while not condition() and time.monotonic() < limit:
        time.sleep(0.02)


def test_the_watch_says_what_is_wrong_and_goes_on(here, capsys, monkeypatch):
    """Keys: l lists, n opens the next, q ends; the check of each file comes once."""
    words = iter([None, "l", None, "x", "n", None, "q"])

    class Typed:
        def typed(self):
            return next(words)

    monkeypatch.setattr("course.watching.Keys", Typed)
    monkeypatch.setattr("course.watching.INTERVAL", 0.0)
    assert learn.run(learn.Options()) == 0
    out = capsys.readouterr().out
    assert out.count("还没有写完") == 2  # the first, and after n again: it is still the next one
    assert "h 提示" in out
    assert "░" in out
