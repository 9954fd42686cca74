"""子进程里的一侧：设好限制，运行 program.py，跑完才交出暗号；见 code_runner.py。

Run as a file, by path, in Python's isolated mode: it imports nothing of this project.
"""

import os
import runpy
import sys
import traceback

MAX_FILE = 16 * 2**20  # bytes a program may write into one file


def limit(memory: int, seconds: int) -> None:
    """Ask the system for limits; Windows has none of these, macOS ignores some."""
    try:
        import resource
    except ImportError:
        return
    for name, value in (
        ("RLIMIT_AS", memory),
        ("RLIMIT_CPU", seconds),
        ("RLIMIT_FSIZE", MAX_FILE),
        ("RLIMIT_CORE", 0),
    ):
        kind = getattr(resource, name, None)
        if kind is None:
            continue
        _, hard = resource.getrlimit(kind)
        if hard != resource.RLIM_INFINITY:
            value = min(value, hard)
        try:
            resource.setrlimit(kind, (value, value))
        except (ValueError, OSError):
            continue  # this system does not know it


def main() -> None:
    """Whatever the program prints goes to stderr; stdout carries the token alone."""
    token = sys.stdin.buffer.read()
    answer = os.dup(1)
    os.dup2(2, 1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    limit(int(sys.argv[1]), int(sys.argv[2]))
    sys.argv = ["program.py"]
    status = 1
    try:
        runpy.run_path("program.py", run_name="__main__")
        status = 0
    except SystemExit as stop:
        # leaving early is not finishing: the tests at the end have not run
        sys.stdout.flush()
        print(f"SystemExit: {stop.code}", file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except (OSError, ValueError):
            pass
        if status == 0:
            os.write(answer, token)
        os._exit(status)


if __name__ == "__main__":
    main()
