"""谁也没想到的错误：把参考解的语法树随便改一处，看诊断会不会冤枉人。

The bank holds the mistakes somebody thought of. A mutant is one nobody did: an operator, a
constant, an order of arguments changed at random. It may be named only if it is that mistake: if it
gives the same results as that twin on other inputs too.
"""

from __future__ import annotations

import ast
import copy
import random
import sys
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

from course.exercise import Exercise, without_marks
from course.running import Outcome, run_source

__all__ = ["mutants", "run_mutant"]

# A mutant may never end: so far, then an error. The longest of those that end takes 10,000 lines,
# and lines, unlike seconds, are as many on a busy machine; seconds are for a line that grows.
LINES = 1_000_000
SECONDS = 10.0
SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Pow: ast.Mult, ast.MatMult: ast.Mult, ast.Mod: ast.FloorDiv,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.And: ast.Or,
}  # fmt: skip


class TooLongError(BaseException):
    """The mutant does not end; not an Exception, or it would count as one case's result, and the
    next case would run untraced: Python drops a trace function that raises."""


def mutants(exercise: Exercise, count: int, seed: int) -> Iterator[str]:
    """At most `count` sources, each the reference solution with one place changed."""
    tree = ast.parse(without_marks(exercise.solution))
    found = [(number, kind) for number, node in enumerate(ast.walk(tree)) for kind in ways(node)]
    random.Random(f"{exercise.id} {seed}").shuffle(found)
    for number, kind in found[:count]:
        changed = copy.deepcopy(tree)
        node = next(n for k, n in enumerate(ast.walk(changed)) if k == number)
        change(node, kind)
        yield ast.unparse(ast.fix_missing_locations(changed))


def ways(node: ast.AST) -> list[str]:
    """How a node can be changed."""
    if isinstance(node, (ast.BinOp, ast.AugAssign, ast.BoolOp)) and type(node.op) in SWAPS:
        return ["operator"]
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        return ["operator"]
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return ["more", "less", "negative"]
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        return ["not"]
    if isinstance(node, ast.UnaryOp) and not isinstance(node.operand, ast.Constant):
        return ["without"]
    if isinstance(node, ast.Call) and len(node.args) >= 2:
        return ["swapped"]
    if isinstance(node, ast.Slice) and (node.lower is not None or node.upper is not None):
        return ["open"]
    return []


def change(node: Any, kind: str) -> None:
    """Change a node in place."""
    if kind == "operator" and isinstance(node, ast.Compare):
        node.ops[0] = SWAPS[type(node.ops[0])]()  # type: ignore[call-overload]
    elif kind == "operator":
        node.op = SWAPS[type(node.op)]()
    elif kind == "without":  # ~x, -x, not x become ++x
        node.op = ast.UAdd()
    elif kind == "swapped":
        node.args[0], node.args[1] = node.args[1], node.args[0]
    elif kind == "open":
        node.lower = node.upper = None
    elif kind == "not":
        node.value = not node.value
    else:
        node.value = {"more": node.value + 1, "less": node.value - 1, "negative": -node.value}[kind]


def run_mutant(exercise: Exercise, source: str, seed: int) -> tuple[Outcome, ...]:
    """Run a mutant, which may never end, so far."""
    end = time.monotonic() + SECONDS
    lines = 0

    def count(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal lines
        if frame.f_code.co_filename != "answer.py":
            return None
        lines += 1
        if lines > LINES or time.monotonic() > end:
            raise TooLongError("it does not end")
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        return run_source(exercise, source, seed)
    except TooLongError:
        return (Outcome(error="it does not end"),) * exercise.cases
    finally:
        sys.settrace(before)
