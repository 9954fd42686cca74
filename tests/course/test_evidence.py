"""The learner's own numbers, in both languages, and silence where there is nothing to see."""

import pytest
import torch

from course.evidence import EVIDENCE, evidence_of, show_number, what_differs
from course.running import Outcome

RIGHT = torch.tensor([[[0.25, 0.75], [0.5, 0.5]]], dtype=torch.float64)


def outcomes(value):
    return (Outcome({"weights": value}),)


@pytest.mark.parametrize(
    ("name", "mine", "numbers"),
    [
        ("row_sum", RIGHT * torch.tensor([[1.0], [0.4]]), ("0.4", "1")),
        ("column_sum", RIGHT.softmax(-2), ("1", "0")),
        ("future", RIGHT, ("0.75",)),
        ("size", RIGHT * 2, ("1.5", "0.75")),
        ("count", RIGHT.tril(), ("3", "4")),
        ("total", RIGHT + 1, ("6", "2")),
        ("ratio", RIGHT * 3, ("3",)),
        ("length", torch.zeros(2, 2, 2), ("2", "1")),
        ("spread", RIGHT * 2, ("1", "0.5")),
    ],
)
def test_each_kind_shows_its_numbers(name, mine, numbers):
    said = EVIDENCE[name](outcomes(mine.double()), outcomes(RIGHT), "weights")
    assert set(said) == {"zh", "en"}
    for number in numbers:
        assert number in said["zh"]
        assert number in said["en"]


@pytest.mark.parametrize("name", ["row_sum", "size", "count", "total", "length"])
def test_nothing_is_said_where_nothing_differs(name):
    assert EVIDENCE[name](outcomes(RIGHT), outcomes(RIGHT), "weights") is None
    assert EVIDENCE[name](outcomes("a text"), outcomes(RIGHT), "weights") is None


def test_every_kind_survives_other_kinds_of_results():
    for name, function in EVIDENCE.items():
        for odd in (None, 1.5, "text", [1, 2], torch.zeros(()), torch.zeros(0, 3)):
            said = function(outcomes(odd), outcomes(RIGHT), "weights")
            assert said is None or set(said) == {"zh", "en"}, name
        function((Outcome(error="ValueError: x"),), outcomes(RIGHT), "weights")


def test_the_first_difference_is_the_fallback():
    said = evidence_of("row_sum weights", outcomes(RIGHT.flip(-1)), outcomes(RIGHT), 1e-5)
    assert said["en"] == "weights[0, 0, 0] = 0.75, expected 0.25"
    said = what_differs(outcomes(RIGHT[..., :1]), outcomes(RIGHT), 1e-5)
    assert "(1, 2, 1)" in said["zh"]
    assert "(1, 2, 2)" in said["zh"]
    said = what_differs((Outcome(error="ValueError: x"),), outcomes(RIGHT), 1e-5)
    assert "ValueError: x" in said["en"]


def test_what_two_lists_share_and_what_was_changed():
    right = (Outcome({"train": ["a", "b"], "val": ["c"]}),)
    leaking = (Outcome({"train": ["a", "c\n"], "val": ["c"]}, changed=("ids",)),)
    assert EVIDENCE["common"](right, right, "train val") is None
    assert "'c\\n' is in train" in EVIDENCE["common"](leaking, right, "train val")["en"]
    assert EVIDENCE["changed"](leaking, right, "other") is None
    assert "ids" in EVIDENCE["changed"](leaking, right, "ids")["zh"]


def test_numbers_are_short():
    assert show_number(0.123456) == "0.1235"
    assert show_number(float("nan")) == "nan"
    assert show_number([0.5] * 9).endswith("…]")
    assert show_number(True) == "True"
    assert len(show_number("x" * 500)) <= 80
