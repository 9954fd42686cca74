"""学习者自己的文件夹：练习复制到这里，改的是这一份；进度记在一个 JSON 文件里。

    my_llm/
    ├── progress.json       passed, attempts, hints, the current exercise
    ├── attention_01.py     copied when the exercise is opened; never overwritten but by `reset`
    └── attention_01_again.py   after --give-up: the same function with a fault to find

Hints are earned: the next one comes after an attempt that differs from the one before.
"""

from __future__ import annotations

import hashlib
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from course.catalogue import bank_of
from course.diagnosis import Diagnosis
from course.exercise import (
    LANGUAGES,
    Exercise,
    all_exercises,
    in_language,
    starter_source,
    without_marks,
)
from course.lessons import N_HINTS
from course.twins import patched
from foundation.files import atomic_file, read_json, write_json

__all__ = ["Workspace"]

PROGRESS = "progress.json"
AGAIN = "_again"
VERSION = 1
MOST_ATTEMPTS = 500  # of one exercise that are kept


class Workspace:
    """A learner's folder with its progress; every change is written at once."""

    def __init__(self, folder: Path, language: str | None = None) -> None:
        self.folder = folder
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder} is a file; give a folder for your exercises")
        self.data = self.read()
        if language is not None and language != self.data["language"]:
            if language not in LANGUAGES:
                raise ValueError(f"language {language!r}: must be one of {', '.join(LANGUAGES)}")
            self.data["language"] = language
            if folder.is_dir():
                self.save()

    @property
    def language(self) -> str:
        """The language of lessons and messages."""
        return str(self.data["language"])

    @property
    def current(self) -> Exercise:
        """The exercise being worked on: the one opened last, at first the first."""
        known = all_exercises()
        name = self.data["current"]
        return known[name] if name in known else next(iter(known.values()))

    def read(self) -> dict[str, Any]:
        """The progress file, or a new one's contents; a damaged file is never overwritten."""
        fresh = {"version": VERSION, "language": "zh", "current": "", "exercises": {}}
        path = self.folder / PROGRESS
        if not path.is_file():
            return fresh
        try:
            data = read_json(path)
            if not isinstance(data, dict) or data.get("language") not in LANGUAGES:
                raise ValueError("not a progress file")
            if not isinstance(data.get("exercises"), dict):
                raise ValueError("no exercises in it")
        except ValueError as error:
            raise ValueError(
                f"{path} is damaged ({error}); mend it, or move it away to start anew "
                "(your exercises stay)"
            ) from None
        if data.get("version", VERSION) > VERSION:
            raise ValueError(f"{path} is of a newer version than this course knows ({VERSION})")
        return fresh | data

    def save(self) -> None:
        """Write the progress file; it is whole at any moment."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(self.folder / PROGRESS) as temporary:
            write_json(temporary, self.data)

    def record(self, exercise: Exercise) -> dict[str, Any]:
        """What is known of one exercise."""
        empty: dict[str, Any] = {
            "passed": "", "attempts": [], "hints": 0, "hint_at": "", "gave_up": "", "again": "",
        }  # fmt: skip
        record: dict[str, Any] = self.data["exercises"].setdefault(exercise.id, {})
        for name, value in empty.items():
            record.setdefault(name, value)
        return record

    # ---- files ----

    def path(self, exercise: Exercise) -> Path:
        """The file to work in: the variant when one waits, otherwise the exercise's."""
        name = exercise.file_name
        if self.record(exercise)["again"] == "open":
            name = name.replace(".py", f"{AGAIN}.py")
        return self.folder / name

    def open(self, exercise: Exercise) -> Path:
        """Make the exercise the current one; copy its starter unless the file is there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        record = self.record(exercise)
        if record["again"] == "waiting":
            record["again"] = "open"
        path = self.path(exercise)
        if not path.exists():
            path.write_text(self.starter(exercise), encoding="utf-8")
        self.data["current"] = exercise.id
        self.save()
        return path

    def starter(self, exercise: Exercise) -> str:
        """What the file begins with: the exercise, or its variant with a planted fault."""
        if self.record(exercise)["again"] != "open":
            return starter_source(exercise, self.language)
        return variant_source(exercise, self.language)

    def reset(self, exercise: Exercise) -> tuple[Path, Path | None]:
        """Begin again; what was there is kept beside it: (the file, the copy)."""
        path = self.path(exercise)
        kept: Path | None = None
        if path.exists():
            number = 1
            while (old := path.with_name(f"{path.stem}.old{number}.py")).exists():
                number += 1
            kept = path.replace(old)
        self.open(exercise)
        return path, kept

    def source(self, exercise: Exercise) -> str:
        """The learner's text; ValueError says how to open the exercise, or where it is no UTF-8."""
        path = self.path(exercise)
        if not path.is_file():
            raise ValueError(
                f"{path} is not there; open it with: fromzero learn open {exercise.id}"
            )
        try:
            return path.read_text(encoding="utf-8-sig")  # Windows' editors may add a mark
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8"
            ) from None

    # ---- progress ----

    def attempted(self, exercise: Exercise, source: str, found: Diagnosis) -> None:
        """Note an attempt (the same text twice counts once), and whether it passed."""
        record, print_ = self.record(exercise), fingerprint(source)
        attempts: list[dict[str, Any]] = record["attempts"]
        if not attempts or attempts[-1]["text"] != print_:
            entry = {"at": now(), "text": print_, "stage": found.stage}
            attempts.append({**entry, "mistakes": list(found.mistakes)})
            del attempts[:-MOST_ATTEMPTS]
        if found.passed:
            if record["again"] == "open":
                record["again"] = "solved"
            elif not record["passed"]:
                record["passed"] = now()
                self.wake(exercise)
        self.save()

    def wake(self, solved: Exercise) -> None:
        """After another exercise is solved, the variants of those given up return."""
        for name, record in self.data["exercises"].items():
            if record.get("gave_up") and not record.get("again") and name != solved.id:
                record["again"] = "waiting"

    def hint(self, exercise: Exercise) -> int:
        """The number of the hint that may be shown now; ValueError says what earns the next."""
        record = self.record(exercise)
        attempts = record["attempts"]
        tried = attempts[-1]["text"] if attempts else ""
        fresh = fingerprint(self.starter(exercise))
        earned = bool(tried) and tried not in (fresh, record["hint_at"])
        if record["hints"] and (not earned or record["hints"] >= N_HINTS):
            return int(record["hints"])  # the last one may be read again
        if not earned:
            raise ValueError(
                "hints come after an attempt of your own: write something in "
                f"{self.path(exercise)}, run `fromzero learn check`, then ask again"
            )
        record["hints"] += 1
        record["hint_at"] = tried
        self.save()
        return int(record["hints"])

    def give_up(self, exercise: Exercise) -> None:
        """The solution is shown without having passed; a variant will return."""
        record = self.record(exercise)
        if not record["passed"]:
            record["gave_up"] = record["gave_up"] or now()
        self.save()

    def solved(self, exercise: Exercise) -> bool:
        """Passed by oneself; after giving up, the variant must be solved too."""
        record = self.record(exercise)
        if record["gave_up"]:
            return bool(record["again"] == "solved")
        return bool(record["passed"])

    def next(self) -> Exercise | None:
        """The exercise to do next: a variant that waits, else the first one not passed."""
        exercises = list(all_exercises().values())
        for exercise in exercises:
            if self.record(exercise)["again"] in ("waiting", "open"):
                return exercise
        for exercise in exercises:
            record = self.record(exercise)
            if not record["passed"] and not record["gave_up"]:
                return exercise
        for exercise in exercises:  # given up as the very last: nothing else wakes them
            if not self.solved(exercise):
                self.record(exercise)["again"] = "waiting"
                return exercise
        return None


def variant_source(exercise: Exercise, language: str) -> str:
    """The variant that returns after giving up: the solution with one fault to find."""
    bank = [mistake for mistake in bank_of(exercise) if not mistake.accept]
    others = [mistake for mistake in bank if mistake.id != exercise.starts_with] or bank
    if exercise.kind == "predict" or not others:
        return starter_source(exercise, language)
    # always the same one for an exercise, and not always the first
    number = int(hashlib.sha256(exercise.id.encode()).hexdigest(), 16) % len(others)
    head = {
        "zh": "# 这份代码有一处错，找出来改好。\n",
        "en": "# One fault is in here. Find and mend it.\n",
    }
    source = patched(exercise, [others[number]])
    return head[language] + in_language(without_marks(source), language)


def fingerprint(source: str) -> str:
    """A short name for a text, blind to trailing blanks and empty lines."""
    lines = [line.rstrip() for line in source.splitlines()]
    text = "\n".join(line for line in lines if line)
    return hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).hexdigest()[:16]


def now() -> str:
    """The time as it is noted: UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
