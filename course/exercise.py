"""一道练习是什么：出题的输入、怎样运行、看哪些结果；内容都在 content/ 里。

An exercise lives in its component's folder, `content/attention/`:

    exercises.py            EXERCISES: inputs and how to run an answer, one `Exercise` each
    attention_01.py         the reference solution; the starter is cut out of it
    attention_01_loops.py   other correct solutions, written differently: all must pass
    attention_01_wrong_attn02_loops.py   wrong answers written by hand: must be diagnosed ATTN-02
    attention_01.zh.md, attention_01.en.md   the lesson, hints, why it matters
    mistakes.toml           the bank of mistakes with their messages, in both languages

In a solution, the lines between `# >>>` and `# <<< REPLACEMENT` are the learner's to write; the
starter has REPLACEMENT there. Lines that start with `zh:` or `en:` (also `# zh:`) belong to one
language.
"""

from __future__ import annotations

import importlib
import inspect
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from foundation.checks import nearest

__all__ = [
    "COMPONENTS",
    "CONTENT",
    "Exercise",
    "all_exercises",
    "find",
    "starter_source",
]

CONTENT = Path(__file__).with_name("content")
# in the order of the course; a component may have exercises in more than one week
COMPONENTS = (
    "attention",
    "heads",
    "norms",
    "ffn",
    "positions",
    "block",
    "gpt",
    "sampling",
    "cache",
    "bpe",
    "data",
    "schedule",
    "optimization",
    "training",
    "lora",
    "quantization",
)
KINDS = ("write", "predict", "repair")
LANGUAGES = ("zh", "en")

Values = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Exercise:
    """One exercise.

    names      what the learner's file must define; the first is called by the default `run`
    inputs     (random, case) → the arguments of one case, float64; all dimensions different
    run        (answer, inputs) → named results, in the order in which they arise
    cases      how many different inputs are tried
    forbidden  calls that would do the exercise by themselves, by their last name
    starts_with  for kind "repair": the mistake that the given code has
    checkpoint the marks of the learning path for which this exercise is evidence
    """

    id: str
    week: int
    names: tuple[str, ...]
    inputs: Callable[[random.Random, int], Values]
    run: Callable[[SimpleNamespace, Values], Values] | None = None
    kind: str = "write"
    cases: int = 3
    outputs: tuple[str, ...] = ()
    forbidden: tuple[str, ...] = ()
    starts_with: str = ""
    checkpoint: tuple[str, ...] = ()
    seconds: float = 5.0
    memory: int = 2**31
    tolerance: float = 1e-5

    def __post_init__(self) -> None:
        assert re.fullmatch(r"[a-z_]+\.\d\d", self.id), self.id
        assert self.kind in KINDS, self.kind
        assert (self.kind == "repair") == bool(self.starts_with), self.id

    @property
    def component(self) -> str:
        """The folder in content/."""
        return self.id.split(".")[0]

    @property
    def file_name(self) -> str:
        """The learner's file, and the reference's: attention_01.py."""
        return self.id.replace(".", "_") + ".py"

    @property
    def folder(self) -> Path:
        """Where its content is."""
        return CONTENT / self.component

    @property
    def solution(self) -> str:
        """The reference solution's source, with its marks."""
        return (self.folder / self.file_name).read_text(encoding="utf-8")

    def answer_files(self) -> dict[str, str]:
        """Other correct solutions by file name."""
        stem = self.file_name.removesuffix(".py")
        found = sorted(self.folder.glob(f"{stem}_*.py"))
        return {p.name: p.read_text(encoding="utf-8") for p in found if "_wrong_" not in p.name}

    def wrong_files(self) -> dict[str, tuple[str, str]]:
        """Wrong answers written by hand: file name → (the mistake's ID, source)."""
        stem = self.file_name.removesuffix(".py")
        wrong = {}
        for path in sorted(self.folder.glob(f"{stem}_wrong_*.py")):
            code = re.fullmatch(r"([a-z]+)(\d+)", path.stem.split("_wrong_")[1].split("_")[0])
            assert code, path.name
            wrong[path.name] = (
                f"{code[1].upper()}-{code[2]}",
                path.read_text(encoding="utf-8"),
            )
        return wrong

    def results(self, answer: SimpleNamespace, inputs: Values) -> Values:
        """Run an answer on one case."""
        if self.run is not None:
            return self.run(answer, inputs)
        if self.kind == "predict":
            return {name: self.predicted(answer, name) for name in self.names}
        result = call(getattr(answer, self.names[0]), inputs)
        names = self.outputs or ("result",)
        if len(names) == 1:
            return {names[0]: result}
        parts = result if isinstance(result, (tuple, list)) else [result]
        if len(parts) != len(names):
            raise TypeError(
                f"{self.names[0]} must return {len(names)} values ({', '.join(names)}), "
                f"not {len(parts)}"
            )
        return dict(zip(names, parts, strict=True))

    @staticmethod
    def predicted(answer: SimpleNamespace, name: str) -> Any:
        """A predicted value; None is what stands there before anything is written."""
        value = getattr(answer, name)
        if value is None:
            raise NotImplementedError(name)
        return float(value) if isinstance(value, (bool, int, float)) else value


def call(function: Callable[..., Any], inputs: Values) -> Any:
    """Call by name; in their order where the learner gave the parameters other names."""
    try:
        inspect.signature(function).bind(**inputs)
    except (TypeError, ValueError):
        return function(*inputs.values())
    return function(**inputs)


@cache
def all_exercises() -> Mapping[str, Exercise]:
    """Every exercise in the order of the course."""
    found: dict[str, Exercise] = {}
    for component in COMPONENTS:
        module = importlib.import_module(f"course.content.{component}.exercises")
        for exercise in module.EXERCISES:
            assert exercise.id not in found, exercise.id
            found[exercise.id] = exercise
    order = sorted(found.values(), key=lambda exercise: exercise.week)  # stable
    return {exercise.id: exercise for exercise in order}


def find(name: str) -> Exercise:
    """The exercise of that ID; ValueError names the nearest."""
    known = all_exercises()
    name = name.removesuffix(".py")
    name = name.replace("_", ".") if name not in known and name.count("_") == 1 else name
    if name in known:
        return known[name]
    head, _, number = name.rpartition("_")
    if f"{head}.{number}" in known:
        return known[f"{head}.{number}"]
    guess = nearest(name, known)
    hint = f"; did you mean {guess!r}?" if guess else ""
    raise ValueError(f"no exercise {name!r}{hint}; `fromzero learn list` shows all {len(known)}")


def in_language(text: str, language: str) -> str:
    """Keep the lines of one language, without their marks."""
    assert language in LANGUAGES, language
    kept = []
    for line in text.splitlines():
        mark = re.match(r"(\s*(?:# )?)(zh|en): ?(.*)", line)
        if mark is None:
            kept.append(line)
        elif mark[2] == language:
            kept.append(f"{mark[1]}{mark[3]}".rstrip())
    return "\n".join(kept) + "\n"


def starter_source(exercise: Exercise, language: str = "zh") -> str:
    """What the learner begins with: the solution without the marked lines."""
    if exercise.kind == "repair":
        from course.catalogue import bank_of
        from course.twins import patched

        mistake = next(m for m in bank_of(exercise) if m.id == exercise.starts_with)
        return in_language(without_marks(patched(exercise, [mistake])), language)
    return in_language(tidied(exercise, cut(exercise.solution)), language)


def solution_source(exercise: Exercise, language: str = "zh") -> str:
    """The reference solution as a learner may read it."""
    return in_language(tidied(exercise, without_marks(exercise.solution)), language)


def tidied(exercise: Exercise, source: str) -> str:
    """A prediction stands in brackets only for the marks' sake."""
    if exercise.kind != "predict":
        return source
    return re.sub(r"\(\n[ \t]+([^\n]*)\n\)", r"\1", source)


MARKED = re.compile(
    r"^[ \t]*# >>>[^\n]*\n(.*?)^([ \t]*)# <<< ?([^\n]*)\n", re.DOTALL | re.MULTILINE
)


def cut(source: str) -> str:
    """Replace each marked part by what stands in its closing line."""
    found = MARKED.search(source)
    assert found, "a solution must mark what the learner writes"
    return MARKED.sub(lambda m: f"{m[2]}{m[3]}\n" if m[3] else "", source)


def without_marks(source: str) -> str:
    """The whole solution, the marks taken away."""
    return MARKED.sub(lambda m: m[1], source)
