"""What is said of an answer, and when nobody is accused."""

import json
import math
from dataclasses import replace

import pytest
import torch

from course import diagnosis
from course.comparison import distance, first_difference, value_distance
from course.diagnosis import diagnose, diagnose_source
from course.exercise import find, starter_source, without_marks
from course.running import Outcome, from_json, run_source, to_json
from course.twins import patched, twins


def judged(exercise, source, seed=7):
    return diagnose_source(exercise, source) or diagnose(
        exercise, run_source(exercise, source, seed), seed
    )


@pytest.mark.parametrize(
    ("source", "stage", "line"),
    [
        ("def f(:\n    pass", "syntax", 1),
        ("import torch\n\ndef attention_scores(q, k):\n    return q +", "syntax", 4),
        ("from transformer_basics.attention import SelfAttention", "import", 1),
        ("import course.content", "import", 1),
        ("x = 1", "missing", 0),
        ("def attention_scores(q, k):\n    raise NotImplementedError", "todo", 2),
        ("def attention_scores(q, k):\n    return q @ k", "error", 2),
        ("def attention_scores(q, k):\n    return undefined", "error", 2),
        ("def attention_scores(q, k):\n    return 1.0", "contract", 0),
        ("def attention_scores(q, k):\n    return q[:, :1] @ k.mT", "contract", 0),
        ("def attention_scores(q, k):\n    return (q + 1) @ k.mT", "difference", 0),
        ("x = 1\x00", "syntax", 0),
    ],
)
def test_stages(scores, source, stage, line):
    found = judged(scores, source)
    assert (found.stage, found.line) == (stage, line)
    assert found.evidence["zh"]
    assert found.evidence["en"]


def test_forbidden_calls_are_found_however_they_are_written():
    exercise = find("attention.02")
    for text in (
        "import torch.nn.functional as F\ndef softmax(s):\n    return F.softmax(s, -1)",
        "import torch\ndef softmax(s):\n    return s.softmax(-1)",
        "from torch import logsumexp as l\ndef softmax(s):\n    return (s - l(s, -1, True)).exp()",
    ):
        assert judged(exercise, text).stage == "forbidden"
    # to define one's own of that name is the exercise
    assert judged(exercise, without_marks(exercise.solution)).passed


def test_an_input_changed_in_place_is_told(scores, solution):
    source = solution.replace(
        "    width", "    q *= 1.0\n    q += 0.0\n    q[0] = q[0] * 2\n    width"
    )
    found = judged(scores, source.replace("return q", "q[0] = q[0] / 2\n    return q"))
    assert found.passed  # as it was when it returns
    spoiled = (
        solution.replace("return q @", "result = q @") + "\n    q.zero_()\n    return result\n"
    )
    found = judged(scores, spoiled)
    assert found.stage == "changed"
    assert "q" in found.evidence["en"]


def test_a_mistake_is_named_with_the_learners_own_numbers():
    exercise = find("attention.05")
    found = judged(exercise, exercise.wrong_files()["attention_05_wrong_attn13_where.py"][1])
    assert found.mistakes == ("ATTN-13",)
    sums = (
        run_source(exercise, exercise.wrong_files()["attention_05_wrong_attn13_where.py"][1], 7)[0]
        .values["weights"]
        .sum(-1)
    )
    assert f"{float(sums.flatten()[0]):.4g}" in found.evidence["zh"]


def test_two_mistakes_are_told_as_two():
    exercise = find("attention.03")
    bank = {twin.mistakes[0].id: twin.mistakes[0] for twin in twins(exercise, 7)}
    both = patched(exercise, [bank["ATTN-02"], bank["ATTN-06"]])
    found = judged(exercise, without_marks(both))
    assert found.stage == "pair"
    assert set(found.mistakes) == {"ATTN-02", "ATTN-06"}


def test_nobody_is_accused_when_the_runner_up_is_near(scores, solution, monkeypatch):
    wrong = without_marks(patched(scores, [twins(scores, 7)[0].mistakes[0]]))
    assert judged(scores, wrong).stage == "mistake"
    # the same answer, judged so strictly that every other twin counts as near
    monkeypatch.setattr(diagnosis, "FAR", 1e9)
    assert judged(scores, wrong).mistakes == ()


def test_the_contract_is_told_in_words():
    exercise = find("attention.04")
    solution = without_marks(exercise.solution)
    found = judged(exercise, solution.replace(".tril(past)", ".tril(past).int()"))
    assert found.stage == "contract"
    assert "布尔值" in found.evidence["zh"]
    found = judged(exercise, solution.replace(".tril(past)", ".tril(past).tolist()"))
    assert found.stage == "contract"
    assert "list" in found.evidence["en"]


def test_close_to_a_mistake_is_not_that_mistake(scores):
    source = "def attention_scores(q, k):\n    return (q @ k.mT) * 1.0001"
    assert judged(scores, source).mistakes == ()


def test_distances():
    x = torch.tensor([1.0, 2.0], dtype=torch.float64)
    assert value_distance(x, x + 2e-6) == pytest.approx(1e-6, rel=1e-3)
    assert value_distance(x, x[None]) == math.inf
    assert value_distance(x, x.bool()) == math.inf
    assert value_distance(True, 1) == math.inf
    nan, inf = float("nan"), float("inf")
    assert value_distance(torch.tensor([nan, 1.0]), torch.tensor([nan, 1.0])) == 0.0
    assert value_distance(torch.tensor([nan, 1.0]), torch.tensor([0.5, 1.0])) == math.inf
    assert value_distance(torch.tensor([inf, 1.0]), torch.tensor([-inf, 1.0])) == math.inf
    assert value_distance(torch.tensor([inf, 1.0]), torch.tensor([inf, 2.0])) == 0.5
    assert value_distance(torch.tensor([inf]), torch.tensor([-inf])) == math.inf
    assert value_distance([nan, inf, 3], [nan, inf, 3.0]) == 0.0
    assert value_distance(inf, -inf) == value_distance(nan, 1.0) == math.inf
    assert value_distance(4, 5) == pytest.approx(0.2)
    assert value_distance(10**400, 10**400) == 0.0
    assert value_distance(10**400, 1) == math.inf
    assert value_distance([1, "a"], [1, "a"]) == 0.0
    assert value_distance([1, "a"], [1, "b"]) == math.inf
    left = (Outcome({"a": 1.0, "b": x}),)
    right = (Outcome({"a": 1.0, "b": x * torch.tensor([1.0, 1.5])}),)
    assert distance(left, right) == pytest.approx(1 / 3)
    assert first_difference(left, right, 1e-5) == (0, "b", "[1]", 2.0, 3.0)


def test_outcomes_survive_json_exactly():
    values = {
        "t": torch.tensor([[0.1, float("nan")], [float("-inf"), 1e-300]], dtype=torch.float64),
        "b": torch.tensor([True, False]),
        "i": torch.arange(3),
        "l": [1, "二", None, True, [0.1]],
        "d": {"k": torch.zeros(2, 0, dtype=torch.float64)},
        "x": float("inf"),
    }
    outcomes = (Outcome(values), Outcome(error="ValueError: x", line=3, changed=("q",)))
    read = from_json(json.loads(json.dumps(to_json(outcomes), allow_nan=False)))
    assert distance(read, outcomes) == 0.0
    assert torch.equal(read[0].values["t"].isnan(), values["t"].isnan())
    assert read[1] == outcomes[1]
    with pytest.raises(ValueError, match="200000 numbers"):
        to_json((Outcome({"t": torch.zeros(200_001)}),))


def test_starters_in_two_languages(scores):
    chinese, english = starter_source(scores, "zh"), starter_source(scores, "en")
    assert "每个查询" in chinese
    assert "每个查询" not in english
    assert "each key" in english
    for text in (chinese, english):
        assert "zh:" not in text
        assert ">>>" not in text
        assert "math.sqrt(width)" not in text
        compile(text, "starter", "exec")


def test_a_stricter_tolerance_can_be_asked_for(scores, solution):
    nearly = solution.replace("math.sqrt(width)", "math.sqrt(width) * (1 + 1e-7)")
    assert judged(scores, nearly).passed
    strict = replace(scores, tolerance=1e-9)
    assert not diagnose(strict, run_source(strict, nearly, 7), 7).passed


def test_parameters_may_have_other_names(scores):
    renamed = "def attention_scores(queries, keys):\n    return {}"
    right = "queries @ keys.mT / queries.shape[-1] ** 0.5"
    assert judged(scores, renamed.format(right)).passed
    assert judged(scores, renamed.format("queries @ keys.mT")).mistakes == ("ATTN-01",)
    assert judged(scores, "def attention_scores(q):\n    return q").stage == "error"
