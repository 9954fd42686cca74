"""From tasks to a table: each kind by its own measure, nothing run without being asked."""

import json
import math

import pytest
import torch

from evaluation.code_runner import run_program
from evaluation.pass_at_k import Problem, measure_pass_at_k
from evaluation.perplexity import Perplexity
from evaluation.run_tasks import ModelReport, Settings, TaskResult, as_json, as_table, measure_task
from evaluation.small_programs import PROGRAMS
from evaluation.standard_error import Estimate
from evaluation.task_files import Task, load_tasks
from gpt_model.config import GPTConfig
from gpt_model.model import GPT
from tokenization.tokenizer import Tokenizer


def test_the_reference_solutions_pass_and_nothing_else_does():
    problems = [Problem(p.prompt, p.tests) for p in PROGRAMS]
    bodies = [[p.solution, "    pass"] for p in PROGRAMS]
    found = measure_pass_at_k(problems, lambda _, index: bodies[index], (1, 2))
    assert found["pass@1"].value == 0.5
    assert found["pass@2"].value == 1.0


def test_the_reference_solutions_survive_the_stop_texts():
    for program in PROGRAMS:
        problem = Problem(program.prompt, program.tests)
        assert not any(stop in program.solution for stop in problem.stop)
        assert run_program(problem.program(program.solution)).passed


@pytest.fixture(scope="module")
def pair():
    tokenizer = Tokenizer.train_bpe(["def f(x):\n    return x + 1\n2 + 3 = 5\n" * 20], 280)
    torch.manual_seed(0)
    model = GPT(
        GPTConfig(vocab_size=tokenizer.vocab_size, max_seq_len=96, dim=16, n_layers=1, n_heads=2)
    )
    torch.nn.init.zeros_(model.lm_head.weight)
    return model, tokenizer


def test_each_kind_has_its_measures(pair):
    settings = Settings(run_code=True, samples=2, k=(1, 2), max_new_tokens=8)
    tasks = load_tasks(["brackets", "sums", "programs"], limit=4)
    found = {task.name: measure_task(*pair, task, settings) for task in tasks}
    assert list(found["brackets"].measures) == [
        "accuracy",
        "accuracy_per_byte",
        "accuracy_per_token",
    ]
    # every closing bracket is one byte, one token, as likely as the next: a tie of four
    assert found["brackets"].measures["accuracy"].value == 0.25 == found["brackets"].chance
    assert list(found["sums"].measures) == ["exact_match", "exact_match_raw"]
    assert found["programs"].measures["pass@2"].value == 0.0
    assert {result.n for result in found.values()} == {4}


def test_an_error_names_its_task(pair):
    model, _ = pair
    task = Task("mine", load_tasks(["sums"], 1)[0].items)
    with pytest.raises(ValueError, match="task 'mine': text holds '2'"):
        measure_task(model, Tokenizer.characters(["abc"]), task, Settings())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "'programs' runs programs .* no sandbox; add --run-code"),
        ({"run_code": True, "k": (1, 3), "samples": 2}, "k must be .* got k 3 with 2 samples"),
        ({"run_code": True, "k": (0,)}, "got k 0"),
        ({"run_code": True, "k": ()}, "k must hold at least 1"),
        ({"run_code": True, "samples": 0}, "samples must be an integer >= 1"),
        ({"run_code": True, "timeout": 0.0}, "timeout must be"),
        ({"run_code": True, "temperature": -1.0}, "temperature must be"),
        ({"run_code": True, "max_new_tokens": 0}, "max_new_tokens must be"),
    ],
)
def test_settings_are_checked_before_anything_is_loaded(changes, message):
    with pytest.raises(ValueError, match=message):
        Settings(**changes).check(load_tasks(["programs"], 1))


REPORTS = [
    ModelReport(
        "runs/a",
        10,
        Perplexity(800.0, 1234, 99.0),
        [TaskResult("cloze", "choice", 8, {"accuracy": Estimate(0.5, 0.1, 8)}, 0.25)],
    ),
    ModelReport("runs/b", 20, harness={"wiki": {"word_perplexity": 3.5}}),
]


def test_the_file_is_json_without_infinities():
    values = json.loads(json.dumps(as_json(REPORTS, {"limit": None}), allow_nan=False))
    first, second = values["models"]
    assert first["text"]["perplexity"] is None
    assert first["text"]["bits_per_byte"] == pytest.approx(800 * 1234 / math.log(2) / 99)
    assert first["tasks"] == [
        {
            "task": "cloze",
            "kind": "choice",
            "n": 8,
            "measures": {"accuracy": {"value": 0.5, "error": 0.1, "n": 8}},
            "chance": 0.25,
        }
    ]
    assert second["text"] is None
    assert second["lm_eval"] == {"wiki": {"word_perplexity": 3.5}}


def test_models_stand_side_by_side():
    lines = [line.split("  ") for line in as_table(REPORTS).splitlines()]
    cells = {line[0]: [cell.strip() for cell in line[1:] if cell.strip()] for line in lines[1:]}
    assert [cell.strip() for cell in lines[0] if cell.strip()] == ["runs/a", "runs/b", "chance"]
    assert cells["cloze accuracy"] == ["50.0 ± 10.0 %", "–", "25.0 %"]
    assert cells["perplexity"] == ["inf", "–"]
    assert cells["wiki word_perplexity"] == ["–", "3.5000"]
    assert as_table([ModelReport("a", 1, Perplexity(1.0, 5))]).splitlines()[0].split() == [
        "tokens",
        "5",
    ]
