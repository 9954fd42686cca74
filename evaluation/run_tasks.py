"""一个模型、几份考卷 → 分数，再排成表：选择题、填空题、编程题各走各的路。"""

from __future__ import annotations

import io
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, cast

from evaluation.code_runner import run_program
from evaluation.exact_match import ShortAnswer, measure_exact_match, write_answers
from evaluation.multiple_choice import Question, chance_level, measure_choices, score_choices
from evaluation.pass_at_k import Problem, measure_pass_at_k, write_programs
from evaluation.standard_error import Estimate
from evaluation.task_files import Task
from foundation.checks import check_float, check_int

if TYPE_CHECKING:
    from evaluation.perplexity import Perplexity
    from gpt_model.model import GPT
    from tokenization.tokenizer import Tokenizer

__all__ = ["ModelReport", "Settings", "TaskResult", "as_json", "as_table", "measure_task"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How answers and programs are written and run; `run_code` must be asked for."""

    batch_size: int = 16
    max_new_tokens: int = 64
    samples: int = 1
    k: tuple[int, ...] = (1,)
    temperature: float = 0.8
    seed: int = 0
    run_code: bool = False
    timeout: float = 10.0

    def check(self, tasks: Sequence[Task]) -> None:
        """Refuse what cannot be done, before any model is loaded."""
        check_int("batch_size", self.batch_size, 1)
        check_int("max_new_tokens", self.max_new_tokens, 1)
        check_int("samples", self.samples, 1)
        check_float("timeout", self.timeout, exclusive_minimum=0.0)
        check_float("temperature", self.temperature, 0.0)
        if not self.k:
            raise ValueError("k must hold at least 1 number")
        for k in self.k:
            if not 1 <= k <= self.samples:
                raise ValueError(
                    f"k must be >= 1 and <= samples, got k {k} with {self.samples} samples: "
                    "raise --samples or lower --k"
                )
        programs = [task.name for task in tasks if task.kind == "program"]
        if programs and not self.run_code:
            raise ValueError(
                f"the task {programs[0]!r} runs programs that the model writes, in a child process "
                "with limits that is no sandbox; add --run-code if this machine may run them"
            )


@dataclass(frozen=True)
class TaskResult:
    """The measures of one task; the first is the main one."""

    task: str
    kind: str
    n: int
    measures: Mapping[str, Estimate]
    chance: float | None = None


@dataclass
class ModelReport:
    """Everything that was measured of one model."""

    model: str
    parameters: int
    text: Perplexity | None = None
    tasks: list[TaskResult] = field(default_factory=list)
    harness: dict[str, dict[str, float]] = field(default_factory=dict)


def measure_task(model: GPT, tokenizer: Tokenizer, task: Task, settings: Settings) -> TaskResult:
    """Score one model on one task; an error names the task."""
    try:
        measures, chance = MEASURES[task.kind](model, tokenizer, task, settings)
    except ValueError as error:
        raise ValueError(f"task {task.name!r}: {error}") from error
    return TaskResult(task.name, task.kind, len(task.items), measures, chance)


def choices(
    model: GPT, tokenizer: Tokenizer, task: Task, settings: Settings
) -> tuple[dict[str, Estimate], float | None]:
    """Multiple choice by likelihood."""
    questions = cast("Sequence[Question]", task.items)
    score = score_choices(model, tokenizer, batch_size=settings.batch_size)
    return measure_choices(questions, score), chance_level(questions)


def answers(
    model: GPT, tokenizer: Tokenizer, task: Task, settings: Settings
) -> tuple[dict[str, Estimate], float | None]:
    """Greedy answers, compared after normalizing."""
    write = write_answers(
        model,
        tokenizer,
        max_new_tokens=settings.max_new_tokens,
        batch_size=settings.batch_size,
    )
    return measure_exact_match(cast("Sequence[ShortAnswer]", task.items), write), None


def programs(
    model: GPT, tokenizer: Tokenizer, task: Task, settings: Settings
) -> tuple[dict[str, Estimate], float | None]:
    """Sampled programs, run with their tests."""
    write = write_programs(
        model,
        tokenizer,
        settings.samples,
        temperature=settings.temperature,
        max_new_tokens=settings.max_new_tokens,
        seed=settings.seed,
    )
    found = measure_pass_at_k(
        cast("Sequence[Problem]", task.items),
        write,
        settings.k,
        run=lambda program: run_program(program, timeout=settings.timeout),
    )
    return found, None


Measure = Callable[["GPT", "Tokenizer", Task, Settings], tuple[dict[str, Estimate], "float | None"]]
MEASURES: dict[str, Measure] = {"choice": choices, "answer": answers, "program": programs}


def as_json(reports: Sequence[ModelReport], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The whole report as JSON values; what is infinite or unknown is null."""
    return {
        "version": 1,
        "python": platform.python_version(),
        "settings": dict(settings),
        "models": [
            {
                "model": report.model,
                "parameters": report.parameters,
                "text": None if report.text is None else text_figures(report.text),
                "tasks": [asdict(result) for result in report.tasks],
                "lm_eval": report.harness,
            }
            for report in reports
        ],
    }


def text_figures(found: Perplexity) -> dict[str, float | None]:
    """Loss, perplexity, bits per byte."""
    perplexity = found.perplexity
    return {
        "tokens": found.n_tokens,
        "bytes": found.n_bytes,
        "loss": found.loss,
        "perplexity": perplexity if math.isfinite(perplexity) else None,
        "bits_per_byte": found.bits_per_byte,
    }


def rows_of(report: ModelReport) -> dict[str, tuple[str, str]]:
    """Name of the row → (chance, what the model reached)."""
    rows: dict[str, tuple[str, str]] = {}
    if report.text is not None:
        text = report.text
        rows["tokens"] = ("", f"{text.n_tokens:,}")
        rows["loss"] = ("", f"{text.loss:.4f} nats per token")
        rows["perplexity"] = ("", f"{text.perplexity:.2f}")
        if text.bits_per_byte is not None:
            rows["bits per byte"] = ("", f"{text.bits_per_byte:.4f}")
    for result in report.tasks:
        chance = "" if result.chance is None else f"{100 * result.chance:.1f} %"
        for name, found in result.measures.items():
            row = f"{result.task} {name.replace('_', ' ')}"
            rows[row] = (chance, str(found))
    for task, figures in report.harness.items():
        for name, value in figures.items():
            rows[f"{task} {name}"] = ("", f"{value:.4f}")
    return rows


def as_table(reports: Sequence[ModelReport]) -> str:
    """Measures down, models across."""
    from rich.console import Console
    from rich.table import Table

    columns = [rows_of(report) for report in reports]
    names = list(dict.fromkeys(name for column in columns for name in column))
    with_chance = any(chance for column in columns for chance, _ in column.values())
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), show_header=len(reports) > 1)
    table.add_column("", no_wrap=True)
    for report in reports:
        table.add_column(report.model, no_wrap=True)
    if with_chance:
        table.add_column("chance", no_wrap=True)
        table.show_header = True
    for name in names:
        cells = [column.get(name, ("", "–"))[1] for column in columns]
        chance = max(column[name][0] for column in columns if name in column)
        table.add_row(name, *cells, *([chance] if with_chance else []))
    text = io.StringIO()
    # Wide enough for whatever is in it: a table torn in two cannot be read, nor searched.
    Console(width=10_000, file=text, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().rstrip("\n").split("\n"))
