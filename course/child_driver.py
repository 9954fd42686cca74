"""子进程里的一侧：备好 torch 等着，读题、设限、运行学习者的答案，交出结果；见 child_process.py。

Run as a file, by path, in Python's isolated mode. Whatever the answer prints goes to stderr; the
results go out through a pipe of their own, after the secret that the parent has sent.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import sys
from pathlib import Path

MAX_FILE = 16 * 2**20  # bytes an answer may write into one file
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000


def leave_the_network() -> None:
    """On Linux, where it is allowed: an empty network of our own. Elsewhere nothing happens."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            libc = ctypes.CDLL(None, use_errno=True)
            # as root the second alone is enough, and file ownership stays as it is
            libc.unshare(CLONE_NEWNET) and libc.unshare(CLONE_NEWUSER | CLONE_NEWNET)


def limit(memory: int, seconds: int) -> None:
    """Ask the system for limits on top of what is in use; Windows has none, macOS ignores some."""
    try:
        import resource
    except ImportError:
        return
    used, threads = 0, 64
    with contextlib.suppress(OSError, ValueError, IndexError):
        used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        used *= os.sysconf("SC_PAGE_SIZE")
        threads += len(os.listdir("/proc/self/task"))
    limits = {"RLIMIT_CPU": seconds, "RLIMIT_FSIZE": MAX_FILE, "RLIMIT_CORE": 0}
    if used:
        limits |= {"RLIMIT_AS": used + memory, "RLIMIT_NPROC": threads}
    for name, value in limits.items():
        kind = getattr(resource, name, None)
        if kind is None:
            continue
        _, hard = resource.getrlimit(kind)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (value, value))


def main() -> None:
    """Import what is heavy, say so, wait for the job, do it, hand over the results."""
    answer = os.dup(1)
    os.dup2(2, 1)
    leave_the_network()
    # -I ignores PYTHONPATH; the course is where this file is
    sys.path.append(str(Path(__file__).resolve().parents[1]))
    import torch

    from course.exercise import find
    from course.running import run_source, to_json

    torch.set_num_threads(1)  # the numbers are small; threads would only wait for each other
    os.write(answer, b"ready")
    job = json.loads(sys.stdin.buffer.read())
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    exercise = find(job["exercise"])
    limit(exercise.memory, int(job["seconds"]) + 2)
    results = json.dumps(to_json(run_source(exercise, job["source"], job["seed"])))
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    send(answer, (job["token"] + results).encode())
    os._exit(0)


def send(pipe: int, data: bytes) -> None:
    """Write everything: a pipe takes only so much at once."""
    while data:
        data = data[os.write(pipe, data) :]


if __name__ == "__main__":
    main()
