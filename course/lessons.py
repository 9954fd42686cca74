"""每道题的课文：标题、正文、三步提示、为什么；中英各一份，markdown。"""

from __future__ import annotations

import re
from dataclasses import dataclass

from course.exercise import Exercise

__all__ = ["N_HINTS", "Lesson", "lesson"]

N_HINTS = 3


@dataclass(frozen=True)
class Lesson:
    """One lesson in one language."""

    title: str
    body: str
    hints: tuple[str, ...]
    why: str


def lesson(exercise: Exercise, language: str) -> Lesson:
    """Read a lesson; ValueError where a part is missing."""
    path = exercise.folder / f"{exercise.id.replace('.', '_')}.{language}.md"
    parts = re.split(r"^## +(.+?) *$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    head, body = parts[0].strip().split("\n", 1)
    sections = {name: text.strip() for name, text in zip(parts[1::2], parts[2::2], strict=True)}
    wanted = [*(f"hint {number}" for number in range(1, N_HINTS + 1)), "why"]
    if not head.startswith("# ") or sorted(sections) != sorted(wanted):
        raise ValueError(f"{path.name}: wants a # title and ## {', ## '.join(wanted)}")
    hints = tuple(sections[name] for name in wanted[:-1])
    return Lesson(head[2:].strip(), body.strip(), hints, sections["why"])
