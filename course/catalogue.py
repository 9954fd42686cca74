"""错误的目录：每个部件一份 mistakes.toml，错在哪、怎么问、会怎样，中英各一份。

    [ATTN-03]
    link = "transformer_basics/attention.py"
    evidence = "row_sum weights"          # the learner's own numbers; see evidence.py
    [ATTN-03.patches]                     # exercise → replacements in its reference solution
    "attention.05" = [["old text", "new text"]]
    [ATTN-03.zh]
    name = "掩码加在 softmax 之后"
    question = "每一行的权重加起来还是 1 吗？"
    effect = "…"
    [ATTN-03.en]
    …

A patch is what makes the faulty twin: our own solution with exactly this fault. `accept = true`
marks an equivalent convention: its twin counts as right, with a remark.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache
from typing import Any

from course.exercise import COMPONENTS, CONTENT, LANGUAGES, Exercise

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # the same, before Python 3.11

__all__ = ["Mistake", "Words", "all_mistakes", "bank_of"]

FIELDS = {"link", "evidence", "accept", "patches", *LANGUAGES}


@dataclass(frozen=True)
class Words:
    """What is said of a mistake in one language: its name, a question that leads there, what it
    would do to a real training."""

    name: str
    question: str
    effect: str


@dataclass(frozen=True, eq=False)  # one object each: compared and hashed by identity
class Mistake:
    """One mistake people make, with the patches that make it in our own solutions."""

    id: str
    component: str
    link: str
    evidence: str
    accept: bool
    patches: dict[str, tuple[tuple[str, str], ...]]
    words: dict[str, Words]


def read_mistake(name: str, component: str, entry: dict[str, Any]) -> Mistake:
    """Build a Mistake; an entry that lacks a language or a field is an error of the course."""
    unknown = set(entry) - FIELDS
    if unknown:
        raise ValueError(f"{component}/mistakes.toml: {name} has unknown fields {sorted(unknown)}")
    patches = {
        exercise: tuple((old, new) for old, new in pairs)
        for exercise, pairs in entry["patches"].items()
    }
    return Mistake(
        id=name,
        component=component,
        link=entry["link"],
        evidence=entry.get("evidence", ""),
        accept=entry.get("accept", False),
        patches=patches,
        words={language: Words(**entry[language]) for language in LANGUAGES},
    )


@cache
def all_mistakes() -> dict[str, Mistake]:
    """The whole catalogue by ID."""
    found: dict[str, Mistake] = {}
    for component in COMPONENTS:
        text = (CONTENT / component / "mistakes.toml").read_text(encoding="utf-8")
        for name, entry in tomllib.loads(text).items():
            if name in found:
                raise ValueError(
                    f"{name} is in two catalogues: {found[name].component}, {component}"
                )
            found[name] = read_mistake(name, component, entry)
    return found


def bank_of(exercise: Exercise) -> list[Mistake]:
    """The mistakes known for one exercise."""
    return [m for m in all_mistakes().values() if exercise.id in m.patches]
