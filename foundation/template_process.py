"""子进程里渲染模板：写了死循环的模板，三秒之后连进程一起消失。

A thread cannot stop a loop in another thread, `signal.alarm` does not exist on Windows, and
counting instructions does not stop one that runs for minutes. A process can be killed anywhere, and
when it crashes, it crashes alone. It is started once (about a tenth of a second) and kept; each
rendering then costs one line of JSON to it and one back.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

__all__ = ["MAX_SECONDS", "render_runs"]

MAX_SECONDS = 3.0  # for one request, which may render several conversations
START_SECONDS = 60.0  # on a busy machine loading Python alone takes seconds
# The root of the repository comes first, so that it works without being installed.
PROGRAM = (
    "import sys; sys.path.insert(0, {root!r}); "
    "from foundation.template_process import serve; serve()"
)


def render_runs(
    template: str, variables: dict[str, Any], runs: list[dict[str, Any]]
) -> list[tuple[str, list[tuple[int, int]]]]:
    """Render one template several times: each text, and the spans that it marks as generated.

    `variables` hold for every run, each of `runs` adds its own; all of it is plain JSON data.
    Whatever is wrong with the template (syntax, limits, time, its own raise_exception) is a
    ValueError.

    >>> render_runs("{{ name }}, {{ word }}", {"name": "moon"}, [{"word": "a"}, {"word": "b"}])
    [('moon, a', []), ('moon, b', [])]
    """
    try:
        request = json.dumps({"template": template, "variables": variables, "runs": runs})
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"the messages must be plain JSON data: {error}") from None
    answer, seconds = _KEEPER.ask(request.encode("ascii") + b"\n")
    if not answer:
        reason = "it crashes the process that renders it"
        if seconds >= MAX_SECONDS:
            reason = f"it is not done after {MAX_SECONDS:g} seconds"
        raise ValueError(f"the chat template cannot be used: {reason}")
    result = json.loads(answer)
    if "error" in result:
        raise ValueError(f"the chat template cannot be used: {result['error']}")
    return [(text, [(start, end) for start, end in spans]) for text, spans in result["runs"]]


class Worker:
    """One child process, and the thread that reads what it writes."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        program = PROGRAM.format(root=str(Path(__file__).resolve().parents[1]))
        self.process = subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.answers: queue.Queue[bytes] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        # It says when it is ready, so that loading it does not count as a template's time.
        if not self.wait(START_SECONDS):
            self.stop()
            raise ValueError("the process that renders chat templates did not start")

    def _read(self) -> None:
        assert self.process.stdout is not None
        with contextlib.suppress(ValueError, OSError):  # closed while it reads
            for line in self.process.stdout:
                self.answers.put(line)
        self.answers.put(b"")  # it is dead: nobody need wait any longer

    def wait(self, seconds: float) -> bytes:
        """One line of its output; nothing when it is dead or late."""
        try:
            return self.answers.get(timeout=seconds)
        except queue.Empty:
            return b""

    def ask(self, line: bytes, seconds: float) -> bytes:
        """Send one line and wait for one."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(line)
            self.process.stdin.flush()
        except OSError:
            return b""
        return self.wait(seconds)

    def stop(self) -> None:
        """Kill it and reap it."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what was never sent is tried once more
                    pipe.close()


class Keeper:
    """Keeps one worker; one thread at a time may use it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.worker: Worker | None = None

    def ask(self, line: bytes) -> tuple[bytes, float]:
        """Send one line to the worker; return its answer and how long it took."""
        with self.lock:
            # After a fork both processes would read the same pipe: each needs its own.
            if self.worker is None or self.worker.owner != os.getpid():
                self.worker = Worker()
            start = time.monotonic()
            answer = b""
            try:
                answer = self.worker.ask(line, MAX_SECONDS)
            finally:  # Ctrl-C too: a late answer would be taken for the next one's
                if not answer:
                    self.worker.stop()
                    self.worker = None
            return answer, time.monotonic() - start


_KEEPER = Keeper()
if hasattr(os, "register_at_fork"):
    # A lock that another thread holds at the moment of a fork would never be released in the child.
    os.register_at_fork(after_in_child=_KEEPER.__init__)  # type: ignore[misc]


def serve() -> None:
    """What the child does: read a line, answer a line, until the pipe is closed."""
    from foundation.template_sandbox import MAX_MEMORY, answer, make_environment

    # Ctrl-C in a terminal reaches the whole group; the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    environment = make_environment()
    limit_memory(MAX_MEMORY)
    deadline = start_watch()
    output = sys.stdout.buffer
    sys.stdout = sys.stderr  # nothing else may get between the answers
    output.write(b'{"ready": true}\n')
    output.flush()
    for line in sys.stdin.buffer:
        # Later than the parent's limit: this one is for when the parent is gone.
        deadline[0] = time.monotonic() + 2 * MAX_SECONDS
        result = json.dumps(answer(environment, json.loads(line)))
        output.write(result.encode("ascii") + b"\n")
        output.flush()
        deadline[0] = float("inf")


def limit_memory(limit: int) -> None:
    """Cap this process's address space where the system can; elsewhere the sandbox counts."""
    try:
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        soft = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    except (ImportError, ValueError, OSError):  # Windows has none; macOS refuses
        pass


def start_watch() -> list[float]:
    """A thread that ends the whole process once the returned moment has passed."""
    deadline = [float("inf")]

    def watch() -> None:
        while time.monotonic() < deadline[0]:
            time.sleep(0.5)
        os._exit(3)

    threading.Thread(target=watch, daemon=True).start()
    return deadline
