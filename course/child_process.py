"""学习者的答案在自己的子进程里跑：自己的进程组、临时文件夹，限时、限内存、限输出。

    这里                                     子进程
    ──                                       ──
    起动，它先导入 torch                ◀── ready
    题号、种子、源码、暗号              ──▶  出题，运行，逐例记下结果
    只收下「暗号 + JSON」                ◀── 它打印的一切去了 stderr，只留开头
    限时到了、进程太多，整组结束
    course/ 自己的文件若被改动：复原，算不通过

This is not a sandbox: it is your own code on your own machine. It keeps honest mistakes (endless
loops, fork bombs, ten gigabytes) from hurting, and it takes no one's word for having passed: the
reference values are computed in another process, on inputs from a fresh seed.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from course.exercise import Exercise
from course.running import Outcome, from_json
from evaluation.code_runner import Reader, end_all, start

__all__ = ["ChildResult", "Runner"]

DRIVER = Path(__file__).with_name("child_driver.py")
STARTING = 120.0  # seconds for importing torch on a slow disk
OUTPUT_LIMIT = 20_000  # bytes of what it prints
ANSWER_LIMIT = 8 * 2**20  # bytes of results
MOST_PROCESSES = 24
READY = b"ready"


@dataclass(frozen=True)
class ChildResult:
    """What came back: outcomes, or the reason why not ("time", "processes", "exit", "output",
    "damage"); and the beginning of what the answer printed."""

    outcomes: tuple[Outcome, ...] | None
    reason: str
    printed: str


class Runner:
    """Runs answers, each in a fresh process; the next one is started ahead, torch imported."""

    def __init__(self) -> None:
        self.folder: tempfile.TemporaryDirectory[str] | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self.answer: Reader | None = None
        self.printed: Reader | None = None

    def __enter__(self) -> Runner:
        self.prepare()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def prepare(self) -> None:
        """Start a process now, so that it is ready when the next answer comes."""
        if self.process is not None:
            return
        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        # no limits at first: the driver sets them when torch is imported
        self.process = start(self.folder.name, driver=DRIVER)
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.answer = Reader(self.process.stdout, ANSWER_LIMIT)
        self.printed = Reader(self.process.stderr, OUTPUT_LIMIT)

    def close(self) -> None:
        """End the process and all it started; remove its folder."""
        if self.process is not None:
            end_all(self.process)
        if self.folder is not None:
            self.folder.cleanup()
        self.process, self.folder = None, None

    def run(self, exercise: Exercise, source: str, seed: int) -> ChildResult:
        """Run one answer on the cases of `seed`; whatever it does, this returns in time."""
        own_files()
        self.prepare()
        process, answer, printed = self.process, self.answer, self.printed
        assert process is not None
        assert process.stdin is not None
        assert answer is not None
        assert printed is not None
        token = secrets.token_hex(16)
        job = {"exercise": exercise.id, "source": source, "seed": seed, "token": token}
        try:
            wait_until(lambda: READY in answer.kept or process.poll() is not None, STARTING)
            if READY not in answer.kept:
                raise RuntimeError(f"the course's process did not start: {readable(printed.kept)}")
            process.stdin.write(json.dumps({**job, "seconds": exercise.seconds}).encode())
            process.stdin.close()
        except OSError:
            pass  # it is gone already; nothing will come back
        reason = watch(process, exercise.seconds)
        end_all(process)
        for reader in (answer, printed):
            reader.join(1.0)
        self.close()
        said = readable(printed.kept)
        if repair_own_files():
            return ChildResult(None, "damage", said)
        outcomes = outcomes_of(answer.kept, token, exercise.cases)
        if outcomes is None:
            return ChildResult(None, reason or "exit", said)
        return ChildResult(outcomes, "", said)


def watch(process: subprocess.Popen[bytes], seconds: float) -> str:
    """Wait for the end; say why it had to be ended: too long, or too many processes."""
    deadline = time.monotonic() + seconds
    while process.poll() is None:
        if time.monotonic() > deadline:
            return "time"
        if processes_in_group(process.pid) > MOST_PROCESSES:
            return "processes"
        time.sleep(0.02)
    return ""


def processes_in_group(group: int) -> int:
    """How many processes a group has; Linux only, 0 elsewhere (the system's own limit holds)."""
    if sys.platform != "linux":
        return 0
    count = 0
    with os.scandir("/proc") as entries:
        for entry in entries:
            if not entry.name.isdigit():
                continue
            try:
                text = Path(entry.path, "stat").read_text(encoding="utf-8", errors="replace")
            except OSError:
                continue
            # the name may hold spaces and brackets; state, parent and group follow it
            fields = text.rpartition(")")[2].split()
            count += len(fields) > 2 and int(fields[2]) == group
    return count


def wait_until(done: object, seconds: float) -> None:
    """Wait until done() holds, or the time is over."""
    assert callable(done)
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not done() and time.monotonic() < deadline:
        pause.wait(0.01)


def outcomes_of(data: bytes, token: str, n_cases: int) -> tuple[Outcome, ...] | None:
    """The results that follow the secret; None when there is anything else."""
    head = READY + token.encode()
    if not data.startswith(head) or len(data) >= ANSWER_LIMIT:
        return None
    try:
        outcomes = from_json(json.loads(data[len(head) :], parse_constant=refuse_constant))
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError):
        return None
    return outcomes if len(outcomes) == n_cases else None


def refuse_constant(name: str) -> float:
    """NaN and Infinity are written by name in quotes, never like this."""
    raise ValueError(name)


def readable(data: bytes) -> str:
    """What was printed, as text."""
    return data.decode("utf-8", errors="replace").strip()


@cache
def own_files() -> dict[Path, bytes]:
    """The course itself, as it was before any answer ran."""
    root = Path(__file__).parent
    kept = {".py", ".md", ".toml"}
    return {path: path.read_bytes() for path in root.rglob("*") if path.suffix in kept}


def repair_own_files() -> bool:
    """Write back what an answer has changed or removed; was there anything?"""
    damaged = False
    for path, data in own_files().items():
        try:
            if path.read_bytes() == data:
                continue
        except OSError:
            pass  # removed
        damaged = True
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return damaged
