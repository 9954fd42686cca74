"""错在哪里：先看源码，再看跑不跑得完，再与错误库里的孪生逐一对照；对不上就说第一个不同的数。

① 源码    语法、不许用的函数
② 相等    与参考解相对误差不到容差，通过；等价的写法（accept）也通过
③ 错误库  恰好与一组孪生相等，而下一组远在百倍之外，才指名
④ 两个错  任意两个错误同时犯
⑤ 其余    异常、就地改了输入、形状、第一个不同的中间结果

One message at a time. A mistake is named only on this evidence; otherwise numbers are shown, and
nobody is accused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from course.catalogue import Mistake
from course.comparison import distance, first_difference, is_other_kind
from course.evidence import Sentence, evidence_of, what_differs
from course.exercise import Exercise
from course.running import Outcome
from course.source_rules import source_complaint
from course.twins import Group, pair_groups, reference, twin_groups, twins

__all__ = ["Diagnosis", "diagnose", "diagnose_source"]

FAR = 100.0  # how many tolerances away the runner-up must be


@dataclass(frozen=True)
class Diagnosis:
    """The result of one check.

    stage     passed, accepted, syntax, forbidden, import, limit, todo, missing, mistake, pair,
              error, changed, contract, difference
    mistakes  the IDs of what was recognised; several in one group where they cannot be told apart
    evidence  one sentence with the learner's own numbers, per language
    """

    exercise: str
    stage: str
    mistakes: tuple[str, ...] = ()
    evidence: Sentence = field(default_factory=dict)
    line: int = 0

    @property
    def passed(self) -> bool:
        """Is the exercise solved?"""
        return self.stage in ("passed", "accepted")

    def to_json(self) -> dict[str, Any]:
        """For `check --json` and the progress file."""
        return {**vars(self), "mistakes": list(self.mistakes), "passed": self.passed}


def diagnose_source(exercise: Exercise, source: str) -> Diagnosis | None:
    """Stage ①: what the text alone tells."""
    found = source_complaint(exercise, source)
    if found is None:
        return None
    said = {
        "syntax": {"zh": f"语法错误：{found.what}", "en": f"syntax error: {found.what}"},
        "forbidden": {
            "zh": f"用了 {found.what}：这一题就是要自己写出它",
            "en": f"{found.what} is used: writing it is the exercise",
        },
        "import": {
            "zh": f"导入了 {found.what}：答案要自己写",
            "en": f"{found.what} is imported: the answer is yours to write",
        },
    }
    return Diagnosis(exercise.id, found.stage, evidence=said[found.stage], line=found.line)


def diagnose(exercise: Exercise, yours: Sequence[Outcome], seed: int) -> Diagnosis:
    """Stages ② to ⑤: what the outcomes of an answer tell."""
    early = unfinished(exercise, yours)
    if early is not None:
        return early
    right = reference(exercise, seed)
    if distance(yours, right, exercise.tolerance) <= exercise.tolerance:
        return Diagnosis(exercise.id, "passed")
    for twin in twins(exercise, seed, accepted=True):
        if distance(yours, twin.outcomes, exercise.tolerance) <= exercise.tolerance:
            ids = tuple(mistake.id for mistake in twin.mistakes)
            return Diagnosis(exercise.id, "accepted", ids)
    found = only_match(exercise, yours, twin_groups(exercise, seed))
    if found is not None:
        return named(exercise, "mistake", found.mistakes, yours, right)
    found = only_match(exercise, yours, pair_groups(exercise, seed))
    if found is not None:
        shared = [m for m in found.mistakes if all(m in twin.mistakes for twin in found.twins)]
        # several pairs may give the same: what all of them have is sure, the rest is not
        return named(exercise, "pair", tuple(shared), yours, right)
    return by_numbers(exercise, yours, right)


def unfinished(exercise: Exercise, yours: Sequence[Outcome]) -> Diagnosis | None:
    """Nothing to compare yet: not written, or a name is missing."""
    for outcome in yours:
        if outcome.missing:
            names = ", ".join(outcome.missing)
            said = {"zh": f"文件里没有定义 {names}", "en": f"the file does not define {names}"}
            return Diagnosis(exercise.id, "missing", evidence=said)
        if outcome.error.startswith("NotImplementedError"):
            said = {"zh": "还没有写完", "en": "not written yet"}
            return Diagnosis(exercise.id, "todo", evidence=said, line=outcome.line)
    return None


def only_match(
    exercise: Exercise, yours: Sequence[Outcome], candidates: Sequence[Group]
) -> Group | None:
    """The one group that gives the same results, the next being far away; or None."""
    far = FAR * exercise.tolerance
    ranked = sorted(
        (distance(yours, group.outcomes, far), number) for number, group in enumerate(candidates)
    )
    if not ranked or ranked[0][0] > exercise.tolerance:
        return None
    runner_up = ranked[1][0] if len(ranked) > 1 else math.inf
    if runner_up < far:
        return None
    return candidates[ranked[0][1]]


def named(
    exercise: Exercise,
    stage: str,
    mistakes: tuple[Mistake, ...],
    yours: Sequence[Outcome],
    right: Sequence[Outcome],
) -> Diagnosis:
    """A diagnosis with names, and the numbers that the first of them asks for."""
    wanted = mistakes[0].evidence if mistakes else ""
    said = evidence_of(wanted, yours, right, exercise.tolerance)
    line = max((outcome.line for outcome in yours), default=0)
    return Diagnosis(exercise.id, stage, tuple(m.id for m in mistakes), said, line)


def by_numbers(exercise: Exercise, yours: Sequence[Outcome], right: Sequence[Outcome]) -> Diagnosis:
    """No name fits: the exception, the broken contract or the first number that differs."""
    said = what_differs(yours, right, exercise.tolerance)
    failed = [outcome for outcome in yours if outcome.error]
    if failed:
        return Diagnosis(exercise.id, "error", evidence=said, line=failed[0].line)
    for mine in yours:
        if mine.changed:
            names = ", ".join(mine.changed)
            said = {
                "zh": f"输入 {names} 被就地改了：调用者手里的那一份也变了",
                "en": f"the input {names} was changed in place: the caller's copy changed too",
            }
            return Diagnosis(exercise.id, "changed", evidence=said)
    found = first_difference(yours, right, exercise.tolerance)
    contract = found is not None and is_other_kind(found[3], found[4])
    return Diagnosis(exercise.id, "contract" if contract else "difference", evidence=said)
