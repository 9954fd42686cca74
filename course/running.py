"""在一个进程里运行一份答案：出题、导入、逐例运行，结果记下来；也写成 JSON 好过河。

The same function runs the reference and its faulty twins here, and the learner's answer in a child
process of its own (child_process.py): inputs are made before the answer is imported.
"""

from __future__ import annotations

import copy
import hashlib
import math
import random
import traceback
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from course.exercise import Exercise

__all__ = ["Outcome", "cases", "from_json", "run_source", "to_json"]

MAX_NUMBERS = 200_000  # in one answer; the cap on what a child may send
FILE_NAME = "answer.py"


@dataclass(frozen=True)
class Outcome:
    """What an answer gave on one case: named values, or an error with the line it came from.

    missing  names the answer does not define
    changed  inputs that the answer changed in place
    """

    values: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    line: int = 0
    changed: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


def cases(exercise: Exercise, seed: int) -> list[dict[str, Any]]:
    """The inputs of every case, a function of the seed alone."""
    made = []
    for case in range(exercise.cases):
        digest = hashlib.sha256(f"{exercise.id} {seed} {case}".encode()).digest()
        number = int.from_bytes(digest[:8], "little")
        seed_here(number)
        made.append(exercise.inputs(random.Random(number), case))
    return made


def seed_here(number: int) -> None:
    """Seed the processor's generator. `torch.manual_seed` notes the whole call stack for each
    kind of accelerator that is not in use: a hundred times slower, and the notes are kept."""
    torch.default_generator.manual_seed(number)


def run_source(exercise: Exercise, source: str, seed: int) -> tuple[Outcome, ...]:
    """Import an answer from its source and run it on every case."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    # the tensors are small: threads would only wait for each other, for seconds on a busy machine
    torch.set_num_threads(1)
    try:
        inputs = cases(exercise, seed)
        space: dict[str, Any] = {"__name__": "answer", "__file__": FILE_NAME}
        try:
            exec(compile(source, FILE_NAME, "exec"), space)
        except Exception as error:
            return tuple(failure(error) for _ in inputs)
        return run_answer(exercise, SimpleNamespace(**space), inputs)
    finally:
        torch.set_default_dtype(before)
        torch.set_rng_state(state)
        torch.set_num_threads(threads)


def run_answer(
    exercise: Exercise, answer: SimpleNamespace, inputs: list[dict[str, Any]]
) -> tuple[Outcome, ...]:
    """Run an answer that is already imported on every case."""
    missing = tuple(name for name in exercise.names if not hasattr(answer, name))
    if missing:
        return tuple(Outcome(missing=missing, error=f"missing {missing[0]}") for _ in inputs)
    outcomes = []
    for number, case in enumerate(inputs):
        kept = copy.deepcopy(case)
        seed_here(number)
        try:
            with torch.enable_grad():
                values = exercise.results(answer, case)
        except Exception as error:
            outcomes.append(failure(error))
            continue
        changed = tuple(name for name in kept if not same(kept[name], case[name]))
        outcomes.append(Outcome({k: plain(v) for k, v in values.items()}, changed=changed))
    return tuple(outcomes)


def failure(error: Exception) -> Outcome:
    """An exception as an outcome: its type and message, and the last line of the answer in it."""
    if isinstance(error, SyntaxError):
        return Outcome(error=f"SyntaxError: {error.msg}", line=error.lineno or 0)
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno or 0 for frame in frames if frame.filename == FILE_NAME]
    text = " ".join(str(error).split())[:500]
    return Outcome(
        error=f"{type(error).__name__}: {text}".rstrip(": "), line=lines[-1] if lines else 0
    )


def same(left: Any, right: Any) -> bool:
    """Are two inputs still equal, bit for bit?"""
    if isinstance(left, Tensor):
        return isinstance(right, Tensor) and (
            left.shape == right.shape
            and torch.equal(left.detach().nan_to_num(), right.detach().nan_to_num())
        )
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, (int, float, str, bytes, bool, type(None))):
        return bool(left == right)
    return True  # callables and modules: theirs to use


def plain(value: Any) -> Any:
    """A result as plain data: tensors detached, tuples as lists; anything else by its type."""
    if isinstance(value, Tensor):
        value = value.detach()
        if value.dtype == torch.bool:
            return value.clone()
        kind = torch.float64 if value.dtype.is_floating_point else torch.int64
        return value.to(kind).clone()
    if isinstance(value, (bool, int, float, str, type(None))):
        return value
    if isinstance(value, bytes):
        return list(value)
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if hasattr(value, "item") and hasattr(value, "dtype"):  # a numpy scalar
        return value.item()
    return f"<{type(value).__name__}>"


def to_json(outcomes: tuple[Outcome, ...]) -> list[dict[str, Any]]:
    """Outcomes as JSON data; floats exact. ValueError when there are too many numbers."""
    count = [0]
    written = []
    for outcome in outcomes:
        entry = dict(vars(outcome))
        entry["values"] = {name: packed(value, count) for name, value in outcome.values.items()}
        written.append(entry)
    return written


def packed(value: Any, count: list[int]) -> Any:
    """One result as JSON; NaN and ∞ by name, tensors with their shape."""
    count[0] += value.numel() if isinstance(value, Tensor) else 1
    if count[0] > MAX_NUMBERS:
        raise ValueError(f"the answer gives more than {MAX_NUMBERS} numbers")
    if isinstance(value, Tensor):
        numbers = [packed(x, [0]) for x in value.flatten().tolist()]
        kind = str(value.dtype).removeprefix("torch.")
        return {"tensor": numbers, "shape": list(value.shape), "dtype": kind}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    if isinstance(value, list):
        return [packed(part, count) for part in value]
    if isinstance(value, dict):
        return {"dict": {key: packed(part, count) for key, part in value.items()}}
    return value


DTYPES = {"float64": torch.float64, "int64": torch.int64, "bool": torch.bool}


def from_json(data: Any) -> tuple[Outcome, ...]:
    """The inverse of `to_json`; ValueError or KeyError or TypeError on anything else."""
    outcomes = []
    for entry in data:
        values = {str(name): unpacked(value) for name, value in entry["values"].items()}
        outcomes.append(
            Outcome(
                values,
                str(entry["error"]),
                int(entry["line"]),
                tuple(map(str, entry["changed"])),
                tuple(map(str, entry["missing"])),
            )
        )
    return tuple(outcomes)


def unpacked(value: Any) -> Any:
    """One result from its JSON."""
    if isinstance(value, list):
        return [unpacked(part) for part in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        numbers = [unpacked(x) for x in value["tensor"]]
        made = torch.tensor(numbers, dtype=DTYPES[value["dtype"]])
        return made.reshape(value["shape"])
    if "float" in value:
        return float(value["float"])
    return {key: unpacked(part) for key, part in value["dict"].items()}
