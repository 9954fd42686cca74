"""运行之前先看源码：语法对不对，有没有把要写的那一步交给现成的函数。"""

from __future__ import annotations

import ast
from dataclasses import dataclass

from course.exercise import Exercise

__all__ = ["Complaint", "source_complaint"]

# our own code has the answers
OWN = (
    "course", "transformer_basics", "gpt_model", "tokenization", "training", "inference",
    "finetuning", "evaluation", "fromzero",
)  # fmt: skip


@dataclass(frozen=True)
class Complaint:
    """What is wrong with a source text before it runs: a stage, a line, a name."""

    stage: str
    line: int
    what: str


def source_complaint(exercise: Exercise, source: str) -> Complaint | None:
    """The first complaint about an answer's text, or None."""
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        return Complaint("syntax", error.lineno or 0, error.msg)
    except ValueError as error:  # a null byte
        return Complaint("syntax", 0, str(error))
    except (RecursionError, MemoryError):
        return Complaint("syntax", 0, "too deeply nested")
    for node in ast.walk(tree):
        name = used_name(node)
        if name in exercise.forbidden:
            return Complaint("forbidden", getattr(node, "lineno", 0), name)
        for module in imported(node):
            if module.split(".")[0] in OWN:
                return Complaint("import", getattr(node, "lineno", 0), module)
    return None


def used_name(node: ast.AST) -> str:
    """The last name of what a node uses: F.softmax → softmax; also of imported names."""
    if isinstance(node, ast.Attribute):
        return node.attr
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
        return node.id
    if isinstance(node, ast.alias):
        return node.name.split(".")[-1]
    return ""


def imported(node: ast.AST) -> list[str]:
    """The modules a node imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [node.module or ""]
    return []
