"""The estimator against counting every draw, and problems that are really run."""

import math
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evaluation.code_runner import Outcome
from evaluation.pass_at_k import Problem, measure_pass_at_k, pass_at_k, write_programs
from gpt_model.config import GPTConfig
from gpt_model.model import GPT
from tokenization.tokenizer import Tokenizer

DOUBLE = Problem("def double(x):\n", "assert double(4) == 8")


@given(
    st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n)))
)
def test_equals_counting_every_draw(case):
    n, c, k = case
    draws = list(combinations([True] * c + [False] * (n - c), k))
    assert math.isclose(pass_at_k(n, c, k), sum(map(any, draws)) / len(draws))


@given(
    st.floats(0, 1), st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n)))
)
def test_it_is_unbiased(p, case):
    """Averaged over the binomial law of c it is exactly 1 − (1 − p)^k."""
    n, k = case
    law = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    mean = sum(weight * pass_at_k(n, c, k) for c, weight in enumerate(law))
    assert math.isclose(mean, 1 - (1 - p) ** k, abs_tol=1e-9)


def test_large_numbers_do_not_overflow():
    assert pass_at_k(10_000, 10, 5_000) == pytest.approx(1 - 2**-10, abs=1e-4)


@pytest.mark.parametrize("case", [(0, 0, 1), (3, 4, 1), (3, -1, 1), (3, 1, 4), (3, 1, 0)])
def test_impossible_numbers_are_refused(case):
    with pytest.raises(ValueError, match="must be an integer"):
        pass_at_k(*case)


def test_programs_are_really_run():
    bodies = ["    return x + x", "    return x * x", "    import os; os._exit(0)"]
    found = measure_pass_at_k([DOUBLE], lambda *_: bodies, (1, 2, 3))
    assert {name: round(value.value, 6) for name, value in found.items()} == {
        "pass@1": round(1 / 3, 6),
        "pass@2": round(2 / 3, 6),
        "pass@3": 1.0,
    }


def test_the_mean_is_over_problems_and_equal_programs_run_once():
    ran = []

    def run(program):
        ran.append(program)
        return Outcome("good" in program, "", "")

    texts = [["good", "bad", "good", "bad"], ["bad"] * 4]
    found = measure_pass_at_k([DOUBLE, DOUBLE], lambda _, i: texts[i], (1, 4), run=run)
    assert found["pass@1"].value == 0.25
    assert found["pass@4"].value == 0.5
    assert found["pass@1"].n == 2
    assert len(ran) == 3
    assert ran[0].startswith("def double(x):\n")
    assert ran[0].endswith("\nassert double(4) == 8\n")


def test_samples_differ_within_a_problem_and_repeat_with_the_seed():
    tokenizer = Tokenizer.characters(["def f(x):\n    return 1\n"])
    torch.manual_seed(0)
    config = GPTConfig(
        vocab_size=tokenizer.vocab_size, max_seq_len=32, dim=16, n_layers=1, n_heads=2
    )
    model = GPT(config)
    problem = Problem("def f(x):\n", "f(1)", stop=())
    write = write_programs(model, tokenizer, 4, max_new_tokens=12)
    first = write(problem, 0)
    assert len(set(first)) > 1
    assert write(problem, 0) == first
    assert write(problem, 1) != first
    assert (
        len(write_programs(model, tokenizer, 1, temperature=0, max_new_tokens=9)(problem, 0)) == 1
    )
    with pytest.raises(ValueError, match="temperature 0 writes the same program 4 times"):
        write_programs(model, tokenizer, 4, temperature=0)
    with pytest.raises(ValueError, match="samples must be an integer >= 1"):
        write_programs(model, tokenizer, 0)


@pytest.mark.parametrize("fields", [("", "x"), ("x", " "), ("x", "y", ("",))])
def test_bad_problems_are_refused(fields):
    with pytest.raises(ValueError, match="empty"):
        Problem(*fields)
