"""Programs that hang, leave, lie, eat or shout: none passes, none outlives its time."""

import os
import sys
import time
from pathlib import Path

import pytest

from evaluation.code_runner import run_program

GOOD = "def f(x):\n    return x + 1\n\nassert f(1) == 2\n"
SLOW_MACHINE = 20.0  # seconds; a fresh Python starts in 0.1 on a free one


def test_a_right_program_passes_and_its_output_is_kept():
    outcome = run_program(GOOD + "print('明月', 3)\nimport sys; sys.stderr.write('err')")
    assert outcome.passed
    assert outcome.reason == ""
    assert "明月 3" in outcome.output
    assert "err" in outcome.output


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (GOOD.replace("+", "-"), "AssertionError"),
        ("def f(:", "SyntaxError: invalid syntax"),
        ("import os; os._exit(0)", "ended early, with exit code 0"),
        ("import os; os._exit(3)", "ended early, with exit code 3"),
        ("raise SystemExit(0)", "SystemExit: 0"),
        ("import sys; print('PASS'); sys.exit()", "SystemExit: None"),
        ("input()", "EOFError"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("def f(): f()\nf()", "RecursionError"),
        ("x = '\ud800'", "not valid Unicode"),
        ("\x00", "null bytes"),
        ("import sys; print(sys.argv); sys.stdout.close(); 1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_wrong_program_fails_with_its_reason(source, reason):
    outcome = run_program(source, timeout=SLOW_MACHINE)
    assert not outcome.passed
    assert reason in outcome.reason


@pytest.mark.parametrize(
    "lie",
    [
        "print('PASS')",
        "import sys; sys.stdout.buffer.write(b'0' * 32)",
        "import os; [os.write(fd, b'0' * 32) for fd in (1, 2)]",
        "import sys; print(sys.stdin.read())",
        "import os; print(os.environ)",
    ],
)
def test_nothing_printed_makes_a_pass(lie):
    assert not run_program(f"{lie}\nimport os; os._exit(0)\n", timeout=SLOW_MACHINE).passed


@pytest.mark.parametrize(
    "endless",
    [
        "while True: pass",
        "import time; time.sleep(1000)",
        "import signal\nfor s in range(1, 60):\n  try: signal.signal(s, signal.SIG_IGN)\n"
        "  except (ValueError, OSError): pass\nwhile True: pass",
        "while True: print('la' * 1000)",
        "import threading, time\nthreading.Thread(target=time.sleep, args=(1000,)).start()\n"
        "while True: pass",
    ],
)
def test_what_never_ends_is_ended(endless):
    began = time.monotonic()
    outcome = run_program(endless, timeout=0.5, output_limit=1000)
    assert not outcome.passed
    assert outcome.reason == "not finished after 0.5 s"
    assert len(outcome.output) <= 1000
    assert time.monotonic() - began < SLOW_MACHINE


@pytest.mark.skipif(sys.platform == "win32", reason="fork and process groups are POSIX")
@pytest.mark.parametrize("parent", ["", "while True: pass", "os._exit(0)"])
def test_children_end_with_their_parent(tmp_path, parent):
    mark = tmp_path / "pid"
    source = (
        "import os, time\n"
        "if os.fork() == 0:\n"
        f"    open({str(mark)!r}, 'w').write(str(os.getpid()))\n"
        "    time.sleep(1000)\n"
        f"while not os.path.exists({str(mark)!r}): time.sleep(0.01)\n"
        f"{parent}\n"
    )
    assert run_program(source, timeout=2).passed == (parent == "")
    deadline = time.monotonic() + 5
    pid = int(mark.read_text(encoding="utf-8"))
    while time.monotonic() < deadline and alive(pid):
        time.sleep(0.05)
    assert not alive(pid)


def alive(pid):
    """Still running; a zombie that nobody has waited for is not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
        return stat.rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return not Path("/proc").is_dir()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux enforces RLIMIT_AS")
@pytest.mark.parametrize("size", ["10**10", "2**29"])
def test_memory_is_bounded(size):
    outcome = run_program(f"x = bytearray({size})", memory=2**28, timeout=SLOW_MACHINE)
    assert outcome.reason == "MemoryError"
    assert run_program("x = bytearray(2**24)", memory=2**28, timeout=SLOW_MACHINE).passed


@pytest.mark.skipif(sys.platform == "win32", reason="RLIMIT_FSIZE is POSIX")
def test_files_are_bounded_and_gone_afterwards():
    outcome = run_program("open('big', 'wb').write(bytes(2**25))", timeout=SLOW_MACHINE)
    assert not outcome.passed
    outcome = run_program("import os; open('small', 'w').write('x'); print(os.getcwd())")
    assert outcome.passed
    assert not Path(outcome.output.strip()).exists()


def test_the_environment_holds_no_secrets(monkeypatch):
    monkeypatch.setenv("SECRET_KEY", "hunter2")
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    outcome = run_program("import os; print(dict(os.environ))", timeout=SLOW_MACHINE)
    assert outcome.passed
    assert "hunter2" not in outcome.output
    assert "PYTHONPATH" not in outcome.output


def test_much_output_is_cut_and_said():
    outcome = run_program("print('x' * 10**6, flush=True)\n1 / 0", output_limit=100)
    assert outcome.output == "x" * 100
    assert outcome.reason == "it ended early, with exit code 1, and printed too much"
    assert run_program("print('x' * 10**6)", output_limit=100).passed


@pytest.mark.parametrize("options", [{"timeout": 0}, {"timeout": float("nan")}, {"memory": 1000}])
def test_limits_must_make_sense(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        run_program(GOOD, **options)


def test_without_the_limits_of_posix_it_still_runs(monkeypatch, tmp_path):
    """As on Windows: the driver finds no module `resource`."""
    from evaluation import code_runner

    text = code_runner.DRIVER.read_text(encoding="utf-8")
    assert "import resource" in text
    driver = tmp_path / "driver.py"
    without = text.replace("import resource", "import no_such_module")
    driver.write_text(without, encoding="utf-8")
    monkeypatch.setattr(code_runner, "DRIVER", driver)
    assert run_program(GOOD, timeout=SLOW_MACHINE).passed
    assert run_program("while True: pass", timeout=0.5).reason == "not finished after 0.5 s"
