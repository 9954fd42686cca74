"""How long a learner waits: from saving the file to the diagnosis, the next process standing ready.

    python benchmarks/course_check.py

Every exercise is checked three times: as it is handed out, with its first mistake, and solved.
"""

from __future__ import annotations

import statistics
import time

from course.catalogue import bank_of
from course.checking import check_source
from course.child_process import Runner
from course.exercise import all_exercises, starter_source, without_marks
from course.twins import patched

TARGET = 2.0  # seconds


def main() -> None:
    waits: dict[str, list[float]] = {"starter": [], "mistake": [], "solved": []}
    slowest: dict[str, str] = {}
    with Runner() as runner:
        for exercise in all_exercises().values():
            mistake = next(m for m in bank_of(exercise) if not m.accept)
            sources = {
                "starter": starter_source(exercise),
                "mistake": without_marks(patched(exercise, [mistake])),
                "solved": without_marks(exercise.solution),
            }
            for name, source in sources.items():
                runner.prepare()
                time.sleep(2.0)  # the learner is writing; the next process gets ready
                began = time.perf_counter()
                check_source(exercise, source, runner)
                waits[name].append(time.perf_counter() - began)
                if waits[name][-1] == max(waits[name]):
                    slowest[name] = exercise.id
    print(f"{len(waits['solved'])} exercises; seconds from saving to the diagnosis")
    for name, seconds in waits.items():
        print(
            f"{name:<9} median {statistics.median(seconds):.2f}  "
            f"slowest {max(seconds):.2f} ({slowest[name]})"
        )
    share = sum(s <= TARGET for group in waits.values() for s in group)
    total = sum(len(group) for group in waits.values())
    print(f"under {TARGET:g} s: {share} of {total}")


if __name__ == "__main__":
    main()
