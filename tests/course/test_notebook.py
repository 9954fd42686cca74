"""In a notebook: functions of a session, checked as a file would be."""

import math

import jupytext
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from course import check
from course.exercise import all_exercises, find
from course.notebook import gathered_source, write_notebooks
from course.running import run_source
from course.twins import reference

POWER = 0.5


def width_of(q: Tensor) -> int:
    return q.shape[-1]


def my_scores(q: Tensor, k: Tensor) -> Tensor:
    def root(number):
        return math.pow(number, POWER)

    return torch.einsum("btd,bsd->bts", q, k) / root(width_of(q))


def attention_scores(q, k):
    return q @ k.mT


def softmax(scores):
    return F.softmax(scores, dim=-1)


def test_a_function_is_gathered_with_what_it_uses():
    exercise = find("attention.01")
    source = gathered_source(exercise, (my_scores,), {})
    assert (
        run_source(exercise, source, 5)[0]
        .values["scores"]
        .allclose(reference(exercise, 5)[0].values["scores"])
    )
    assert "POWER = 0.5" in source
    assert "def width_of" in source


def test_check_prints_the_diagnosis(capsys):
    assert check("attention.01", my_scores, lang="en") is True
    assert "passed" in capsys.readouterr().out
    assert check("attention.01", attention_scores) is False
    assert "ATTN-01" in capsys.readouterr().out
    assert check("attention.02", softmax) is False
    assert "用了 softmax" in capsys.readouterr().out


def test_predictions_are_given_by_name(capsys):
    right = {"rows_sum": 5, "visible": 15, "first_weight": 1, "last_weight": 0.2}
    assert check("attention.06", **right, hidden_weight=0)
    assert not check("attention.06", **(right | {"visible": 25}), hidden_weight=0)
    assert "ATTN-24" in capsys.readouterr().out
    with pytest.raises(ValueError, match="visible must be a number"):
        check("attention.06", visible=[1])
    with pytest.raises(ValueError, match="did you mean"):
        check("atention.06", visible=1)
    with pytest.raises(ValueError, match="cannot be found"):
        check("attention.01", eval("lambda q, k: q"))


def test_every_lesson_becomes_a_notebook(tmp_path):
    paths = write_notebooks(tmp_path, "zh")
    assert len(paths) == len(all_exercises())
    book = jupytext.read(tmp_path / "attention_01.ipynb")
    kinds = [cell.cell_type for cell in book.cells]
    assert kinds == ["markdown", "code", "code", "markdown", "markdown", "markdown"]
    assert "QKᵀ / √d" in book.cells[0].source
    assert "def attention_scores" in book.cells[1].source
    assert 'check("attention.01", attention_scores, lang="zh")' in book.cells[2].source
    # what a learner has written in one stays
    (tmp_path / "attention_01.ipynb").write_text("mine", encoding="utf-8")
    assert write_notebooks(tmp_path, "zh") == []
    assert (tmp_path / "attention_01.ipynb").read_text(encoding="utf-8") == "mine"
