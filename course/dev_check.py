"""课程检查自己：每个错误都认得出，每个正确的写法都不冤枉——对课程做变异测试（mutation testing）。

What must hold, on inputs no one has seen before:

    every starter fails; every solution and every other correct answer passes
    every mistake of the bank, put into our solution, is diagnosed as itself
    wrong answers written by hand are diagnosed as the mistake in their name
    two mistakes at once are recognised, or nobody is accused
    a mutant that nobody planned is named only if it is that mistake, on other inputs too
"""

from __future__ import annotations

import itertools
import math
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from course.catalogue import all_mistakes, bank_of
from course.comparison import distance
from course.diagnosis import FAR, Diagnosis, diagnose, diagnose_source
from course.exercise import Exercise, all_exercises, starter_source, without_marks
from course.mutants import mutants, run_mutant
from course.running import run_source
from course.twins import pairs, patched, reference, twins

__all__ = ["Figures", "check_course", "check_exercise"]

MUTANTS = 12  # of each exercise


@dataclass
class Figures:
    """What was counted, and every complaint in a line."""

    exercises: int = 0
    answers: int = 0
    mistakes: set[str] = field(default_factory=set)
    planted: int = 0
    exact: int = 0
    by_hand: int = 0
    by_hand_exact: int = 0
    pairs: int = 0
    separated: int = 0
    doubles: int = 0
    doubles_named: int = 0
    mutants: int = 0
    mutants_named: int = 0
    false_accusations: int = 0
    complaints: list[str] = field(default_factory=list)

    @property
    def share_exact(self) -> float:
        """Of the planted mistakes, how many are diagnosed as exactly themselves."""
        return self.exact / self.planted if self.planted else 0.0

    def lines(self) -> list[str]:
        """The figures as they are printed."""
        share = self.separated / self.pairs if self.pairs else 1.0
        doubles = self.doubles_named / self.doubles if self.doubles else 1.0
        return [
            f"exercises               {self.exercises}",
            f"correct answers         {self.answers}, all of them written differently",
            f"distinct mistakes       {len(self.mistakes)}",
            f"planted                 {self.planted}, diagnosed exactly {self.share_exact:.1%}",
            f"wrong answers by hand   {self.by_hand}, diagnosed exactly {self.by_hand_exact}",
            f"pairs kept apart        {self.separated} of {self.pairs} ({share:.1%})",
            f"two mistakes at once    {self.doubles}, both named {doubles:.1%}",
            f"mutants nobody planned  {self.mutants}, given a name that fits {self.mutants_named}",
            f"false accusations       {self.false_accusations}",
        ]


def check_course(
    only: Iterable[str] = (),
    seed: int | None = None,
    progress: Callable[[str], None] = lambda line: None,
    n_mutants: int = MUTANTS,
) -> Figures:
    """Check every exercise, or those named by `only` (an ID or a component)."""
    seed = secrets.randbelow(2**31) if seed is None else seed
    figures = Figures()
    wanted = tuple(only)
    for exercise in all_exercises().values():
        if wanted and exercise.id not in wanted and exercise.component not in wanted:
            continue
        before = len(figures.complaints)
        check_exercise(exercise, seed, figures, n_mutants)
        state = "ok" if len(figures.complaints) == before else "COMPLAINTS"
        progress(f"{exercise.id:<18} {len(bank_of(exercise)):3} mistakes  {state}")
    unused = set(all_mistakes()) - {m.id for e in all_exercises().values() for m in bank_of(e)}
    figures.complaints += [f"{name}: no exercise has it" for name in sorted(unused)]
    return figures


def check_exercise(exercise: Exercise, seed: int, figures: Figures, n_mutants: int) -> None:
    """Check one exercise and add what was found to the figures."""
    figures.exercises += 1

    def judged(source: str) -> Diagnosis:
        early = diagnose_source(exercise, source)
        return early or diagnose(exercise, run_source(exercise, source, seed), seed)

    for language in ("zh", "en"):
        found = judged(starter_source(exercise, language))
        if found.passed:
            figures.complaints.append(f"{exercise.id}: the {language} starter passes")
        wanted = (exercise.starts_with,) if exercise.starts_with else ()
        if found.mistakes != wanted:
            figures.complaints.append(f"{exercise.id}: the starter is diagnosed {found}")
    answers = {"the solution": without_marks(exercise.solution), **exercise.answer_files()}
    for name, source in answers.items():
        figures.answers += 1
        found = judged(source)
        if not found.passed:
            figures.false_accusations += 1
            figures.complaints.append(f"{exercise.id}: {name} is refused: {found}")
    check_mistakes(exercise, seed, figures, judged)
    check_distances(exercise, seed, figures)
    check_doubles(exercise, seed, figures)
    check_mutants(exercise, seed, figures, n_mutants)


def check_mistakes(
    exercise: Exercise, seed: int, figures: Figures, judged: Callable[[str], Diagnosis]
) -> None:
    """Plant each mistake, and judge the wrong answers that were written by hand."""
    for mistake in bank_of(exercise):
        if mistake.accept:
            found = judged(without_marks(patched(exercise, [mistake])))
            if found.stage != "accepted":
                figures.complaints.append(f"{exercise.id}: {mistake.id} is not accepted: {found}")
            continue
        by_hand = [s for name, s in exercise.wrong_files().values() if name == mistake.id]
        figures.mistakes.add(mistake.id)
        figures.by_hand += len(by_hand)
        for number, source in enumerate([without_marks(patched(exercise, [mistake])), *by_hand]):
            figures.planted += 1
            found = judged(source)
            if found.mistakes == (mistake.id,):
                figures.exact += 1
                figures.by_hand_exact += number > 0
                continue
            figures.complaints.append(f"{exercise.id}: {mistake.id} is diagnosed {found}")
            if found.mistakes and mistake.id not in found.mistakes:
                figures.false_accusations += 1
    known = {mistake.id for mistake in bank_of(exercise)}
    for name, (identity, _) in exercise.wrong_files().items():
        if identity not in known:
            figures.complaints.append(f"{name}: {exercise.id} has no mistake {identity}")


def check_distances(exercise: Exercise, seed: int, figures: Figures) -> None:
    """Each faulty twin is far from the solution, and from every other twin."""
    bank = list(twins(exercise, seed))
    right, far = reference(exercise, seed), FAR * exercise.tolerance
    for twin in bank:
        if distance(twin.outcomes, right, far) < far:
            name = twin.mistakes[0].id
            figures.complaints.append(f"{exercise.id}: {name} gives almost the right results")
    for first, second in itertools.combinations(bank, 2):
        figures.pairs += 1
        gap = distance(first.outcomes, second.outcomes, far)
        if gap >= far or math.isinf(gap):
            figures.separated += 1
        else:
            names = f"{first.mistakes[0].id} and {second.mistakes[0].id}"
            figures.complaints.append(f"{exercise.id}: {names} cannot be told apart")


def check_doubles(exercise: Exercise, seed: int, figures: Figures) -> None:
    """Two mistakes at once are never blamed on a third."""
    right = reference(exercise, seed)
    for twin in pairs(exercise, seed):
        if distance(twin.outcomes, right, exercise.tolerance) <= exercise.tolerance:
            continue  # they undo each other: nothing is wrong any more
        figures.doubles += 1
        found = diagnose(exercise, twin.outcomes, seed)
        real = {mistake.id for mistake in twin.mistakes}
        if set(found.mistakes) == real:
            figures.doubles_named += 1
        elif set(found.mistakes) - real and found.stage == "pair":
            figures.false_accusations += 1
            figures.complaints.append(f"{exercise.id}: {sorted(real)} is diagnosed {found}")


def check_mutants(exercise: Exercise, seed: int, figures: Figures, count: int) -> None:
    """Solutions changed at random: whoever is named must be right on other inputs too."""
    other = seed + 1
    bank = {mistake.id: mistake for mistake in bank_of(exercise)}
    for source in mutants(exercise, count, seed):
        outcomes = run_mutant(exercise, source, seed)
        found = diagnose(exercise, outcomes, seed)
        if found.passed:
            continue  # the change changes nothing
        figures.mutants += 1
        if not found.mistakes:
            continue
        again = run_mutant(exercise, source, other)
        named = [bank[name] for name in found.mistakes]
        suspects = [named] if found.stage == "pair" else [[mistake] for mistake in named]
        if any(
            distance(again, run_source(exercise, without_marks(patched(exercise, each)), other))
            <= exercise.tolerance
            for each in suspects
        ):
            figures.mutants_named += 1
            continue
        figures.false_accusations += 1
        figures.complaints.append(f"{exercise.id}: a mutant is wrongly named {found}:\n{source}")
