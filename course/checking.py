"""查一道题：源码 → 子进程 → 对照错误库 → 一条诊断。"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from course.child_process import Runner
from course.diagnosis import Diagnosis, diagnose, diagnose_source
from course.evidence import Sentence
from course.exercise import Exercise
from course.twins import forget, reference, twin_groups

__all__ = ["Checked", "check_source"]


@dataclass(frozen=True)
class Checked:
    """A diagnosis, and the beginning of what the answer printed."""

    diagnosis: Diagnosis
    printed: str = ""


def check_source(
    exercise: Exercise, source: str, runner: Runner, seed: int | None = None
) -> Checked:
    """Check one answer on fresh inputs."""
    early = diagnose_source(exercise, source)
    if early is not None:
        return Checked(early)
    seed = secrets.randbelow(2**31) if seed is None else seed
    reference(exercise, seed)  # before anything of the learner's runs
    twin_groups(exercise, seed)
    result = runner.run(exercise, source, seed)
    if result.outcomes is None:
        said = limit_said(exercise, result.reason)
        return Checked(Diagnosis(exercise.id, "limit", evidence=said), result.printed)
    try:
        return Checked(diagnose(exercise, result.outcomes, seed), result.printed)
    finally:
        forget()  # seeds do not come again


def limit_said(exercise: Exercise, reason: str) -> Sentence:
    """Why there are no results."""
    seconds = f"{exercise.seconds:g}"
    said = {
        "time": {
            "zh": f"{seconds} 秒还没有跑完，被停下了：有没有停不下来的循环？",
            "en": f"stopped after {seconds} s: is there a loop that never ends?",
        },
        "processes": {
            "zh": "起了太多进程，被停下了",
            "en": "stopped: it started too many processes",
        },
        "damage": {
            "zh": "这份代码改动了课程自己的文件；已经复原，不算通过",
            "en": "this code changed the course's own files (restored now): it does not pass",
        },
        "exit": {
            "zh": "没有跑到最后就退出了，或者给出的结果大得不合理",
            "en": "it ended before the last line, or gave unreasonably large results",
        },
    }
    return said[reason]
