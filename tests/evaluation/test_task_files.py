"""Tasks from names and from files; every mistake names its line."""

import json
import re
from pathlib import Path

import pytest

from evaluation.exact_match import ShortAnswer
from evaluation.multiple_choice import Question
from evaluation.pass_at_k import CODE_STOPS, Problem
from evaluation.small_suite import SUITE
from evaluation.task_files import BUILT_IN, load_tasks, read_task


def write(path, *records):
    lines = [r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in records]
    path.write_text("\n".join(lines), encoding="utf-8", newline="\n")
    return path


def test_three_kinds_are_told_apart_by_their_fields(tmp_path):
    choice = {"prompt": "天", "choices": ["地", "\u2028"], "answer": 1, "id": "a"}
    by_text = {**choice, "answer": "地"}
    task = read_task(write(tmp_path / "c.jsonl", choice, "", by_text, ""))
    assert (task.name, task.kind) == ("c", "choice")
    assert task.items == (Question("天", ("地", "\u2028"), 1), Question("天", ("地", "\u2028"), 0))
    one = {"prompt": "q", "answer": "a"}
    many = {"prompt": "q", "answer": ["a", "b"], "stop": ["\n\n", "."]}
    task = read_task(write(tmp_path / "a.jsonl", one, many))
    assert task.kind == "answer"
    assert task.items == (
        ShortAnswer("q", ("a",), ("\n",)),
        ShortAnswer("q", ("a", "b"), ("\n\n", ".")),
    )
    task = read_task(write(tmp_path / "p.jsonl", {"prompt": "def f():\n", "tests": "f()"}))
    assert task.kind == "program"
    assert task.items == (Problem("def f():\n", "f()", CODE_STOPS),)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON: .* at column 2"),
        ("[1]", "line 2: expected a JSON object, got list"),
        ({"prompt": "x"}, "line 2: choices, answer or tests is missing"),
        ({"answer": "x"}, "line 2: prompt is missing"),
        ({"prompt": "x", "choices": ["a", "b"]}, "line 2: answer is missing"),
        ({"prompt": "x", "tests": "y", "choice": []}, "unknown key 'choice' in .*line 2"),
        ({"prompt": 3, "answer": "x"}, r"line 2: prompt must be a text, got 3 \(int\)"),
        ({"prompt": "x", "answer": 5}, "line 2: answer must be a list of texts, got 5"),
        ({"prompt": "x", "answer": ["a", None]}, "line 2: answer must be a list of texts"),
        ({"prompt": "x", "choices": "ab", "answer": 0}, "line 2: choices must be a list of texts"),
        ({"prompt": "x", "choices": ["a", "b"], "answer": 2}, "line 2: answer must be .* got 2"),
        ({"prompt": "x", "choices": ["a", "b"], "answer": "c"}, "'c' is none of the choices"),
        (
            {"prompt": "x", "choices": ["a", "b"], "answer": 0.0},
            "line 2: answer must be an integer",
        ),
        ({"prompt": "", "answer": "a"}, "line 2: the prompt is empty"),
        ({"prompt": "x", "tests": ""}, "line 2: tests is empty"),
        ({"prompt": "x", "answer": "y"}, "line 2: .*mixes choice and answer"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, message):
    good = {"prompt": "x", "choices": ["a", "b"], "answer": 0}
    with pytest.raises(ValueError, match=message):
        read_task(write(tmp_path / "t.jsonl", good, line))


def test_empty_and_missing_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no item"):
        read_task(write(tmp_path / "t.jsonl", "", " "))
    with pytest.raises(ValueError, match="'clozee' is neither a name .* did you mean 'cloze'"):
        load_tasks(["clozee"])
    (tmp_path / "bad.jsonl").write_bytes(b'{"prompt": "\xff"}')
    with pytest.raises(ValueError, match="not valid UTF-8"):
        load_tasks([str(tmp_path / "bad.jsonl")])
    with pytest.raises(ValueError, match="'cloze' is given twice"):
        load_tasks(["suite", "cloze"])


def test_names_groups_and_files_together(tmp_path):
    path = write(tmp_path / "mine.jsonl", {"prompt": "q", "answer": "a"})
    tasks = load_tasks(["suite", "sums", "programs", str(path)], limit=4)
    assert [task.name for task in tasks] == [*SUITE, "sums", "programs", "mine"]
    assert [len(task.items) for task in tasks] == [4] * 6 + [1]
    assert set(BUILT_IN) == {*SUITE, "sums", "programs"}
    for item in load_tasks(["sums"])[0].items:
        left, right = item.prompt.rsplit("\n", 1)[1].rstrip(" =").split(" + ")
        assert item.answers == (str(int(left) + int(right)),)


def test_the_examples_of_the_documents_are_read(tmp_path):
    root = Path(__file__).resolve().parents[2]
    page = (root / "docs" / "evaluation.md").read_text(encoding="utf-8")
    lines = re.search(r"```json\n(.*?)```", page, flags=re.S)[1].splitlines()
    kinds = [read_task(write(tmp_path / f"{n}.jsonl", line)).kind for n, line in enumerate(lines)]
    assert kinds == ["choice", "answer", "program"]
