"""有错的孪生：我们自己的解答，只在一处写错；一道题的错误库就是这样的一排。"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from course.catalogue import Mistake, bank_of
from course.comparison import distance
from course.exercise import Exercise, without_marks
from course.running import Outcome, run_source

__all__ = ["Group", "Twin", "forget", "groups", "pair_groups", "pairs", "patched", "reference"]
__all__ += ["twin_groups", "twins"]


@dataclass(frozen=True)
class Twin:
    """A faulty answer: which mistakes it has, and what it gives on the cases."""

    mistakes: tuple[Mistake, ...]
    outcomes: tuple[Outcome, ...]


@dataclass(frozen=True)
class Group:
    """Twins that give the same results on these inputs: they cannot be told apart."""

    twins: tuple[Twin, ...]

    @property
    def mistakes(self) -> tuple[Mistake, ...]:
        """The mistakes of its first twin; of groups of single mistakes, of all of them."""
        return tuple(dict.fromkeys(m for twin in self.twins for m in twin.mistakes))

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        """What every member gives."""
        return self.twins[0].outcomes


def patched(exercise: Exercise, mistakes: Sequence[Mistake]) -> str:
    """The reference solution with the given mistakes; ValueError where patches do not fit."""
    source = exercise.solution
    for mistake in mistakes:
        for old, new in mistake.patches[exercise.id]:
            if source.count(old) != 1:
                raise ValueError(
                    f"{mistake.id}: the patch of {exercise.id} must occur once, "
                    f"occurs {source.count(old)} times: {old!r}"
                )
            source = source.replace(old, new)
    return source


@lru_cache(maxsize=64)
def reference(exercise: Exercise, seed: int) -> tuple[Outcome, ...]:
    """What the right answer gives."""
    outcomes = run_source(exercise, without_marks(exercise.solution), seed)
    for outcome in outcomes:
        assert not outcome.error, f"{exercise.id}: the reference solution fails: {outcome}"
    return outcomes


@lru_cache(maxsize=64)
def twins(exercise: Exercise, seed: int, *, accepted: bool = False) -> list[Twin]:
    """The faulty twins of one exercise, or those that count as right, run on fresh inputs."""
    return [
        twin_of(exercise, (mistake,), seed)
        for mistake in bank_of(exercise)
        if mistake.accept == accepted
    ]


def twin_of(exercise: Exercise, mistakes: tuple[Mistake, ...], seed: int) -> Twin:
    """Run the solution with these mistakes."""
    source = without_marks(patched(exercise, mistakes))
    return Twin(mistakes, run_source(exercise, source, seed))


@lru_cache(maxsize=64)
def pairs(exercise: Exercise, seed: int) -> list[Twin]:
    """Every two mistakes at once, where their patches fit together."""
    found = []
    bank = [mistake for mistake in bank_of(exercise) if not mistake.accept]
    for first, second in itertools.combinations(bank, 2):
        try:
            found.append(twin_of(exercise, (first, second), seed))
        except ValueError:  # both change the same place
            continue
    return found


def groups(found: Iterable[Twin], tolerance: float) -> list[Group]:
    """Put together the twins whose results are equal."""
    gathered: list[list[Twin]] = []
    for twin in found:
        for members in gathered:
            if distance(members[0].outcomes, twin.outcomes, tolerance) <= tolerance:
                members.append(twin)
                break
        else:
            gathered.append([twin])
    return [Group(tuple(members)) for members in gathered]


@lru_cache(maxsize=64)
def twin_groups(exercise: Exercise, seed: int) -> list[Group]:
    """The faulty twins of one exercise, those that cannot be told apart put together."""
    return groups(twins(exercise, seed), exercise.tolerance)


@lru_cache(maxsize=64)
def pair_groups(exercise: Exercise, seed: int) -> list[Group]:
    """The same for two mistakes at once."""
    return groups(pairs(exercise, seed), exercise.tolerance)


def forget() -> None:
    """Drop what is kept of past seeds."""
    for cached in (reference, twins, pairs, twin_groups, pair_groups):
        cached.cache_clear()
