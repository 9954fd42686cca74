"""Whatever an answer does, the check ends in time and does not pass."""

import os
import subprocess
import sys
import textwrap
import time
from dataclasses import replace

import pytest

from course.checking import check_source
from course.child_process import Runner, own_files
from course.exercise import CONTENT

LINUX = sys.platform == "linux"


@pytest.fixture
def runner():
    with Runner() as made:
        yield made


def check(exercise, source, runner):
    return check_source(exercise, textwrap.dedent(source), runner)


def test_the_solution_passes_and_what_it_prints_is_shown(plain_answers, scores, solution, runner):
    checked = check(scores, solution + "\nprint('勾')\n", runner)
    assert checked.diagnosis.passed
    assert checked.printed == "勾"


def test_a_runner_can_be_used_again(scores, solution, runner):
    assert not check(scores, "def attention_scores(q, k):\n    return q", runner).diagnosis.passed
    assert check(scores, solution, runner).diagnosis.passed


@pytest.mark.parametrize(
    ("source", "stage"),
    [
        ("while True:\n    pass", "limit"),
        ("import time\ntime.sleep(60)", "limit"),
        ("import os\nos._exit(0)", "limit"),
        ("print('PASS')\nprint('passed')\nraise SystemExit(0)", "limit"),
        ("input()", "error"),
        ("import sys\nsys.stdin.read()", "missing"),
        ("def attention_scores(q, k):\n    while True:\n        print('la' * 5000)", "limit"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGTERM)", "limit"),
    ],
)
def test_bad_answers_end_in_time_and_never_pass(scores, runner, source, stage):
    quick = replace(scores, seconds=1.0)
    began = time.monotonic()
    checked = check_source(quick, source, runner)
    assert checked.diagnosis.stage == stage
    assert not checked.diagnosis.passed
    assert len(checked.printed) <= 20_000
    assert time.monotonic() - began < 30


@pytest.mark.skipif(not LINUX, reason="only Linux enforces these limits")
@pytest.mark.parametrize(
    ("source", "stage"),
    [
        ("x = bytearray(10**10)", "error"),
        ("import torch\nx = torch.ones(10**10 // 8)", "error"),
        ("import os\nwhile True:\n    os.fork()", "limit"),
        ("open('big', 'wb').write(bytes(10**8))", "limit"),
    ],
)
def test_memory_processes_and_files_are_bounded(scores, runner, source, stage):
    checked = check(scores, source, runner)
    assert checked.diagnosis.stage in (stage, "error")
    assert not checked.diagnosis.passed


@pytest.mark.skipif(not LINUX, reason="process groups of POSIX")
def test_what_an_answer_has_started_is_ended_too(scores, runner, tmp_path):
    note = tmp_path / "pid"
    source = f"""
        import subprocess, sys
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        open({str(note)!r}, "w").write(str(child.pid))
        while True:
            pass
    """
    check_source(replace(scores, seconds=2.0), textwrap.dedent(source), runner)
    pid = int(note.read_text(encoding="utf-8"))
    for _ in range(50):
        state = subprocess.run(
            ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True
        )
        if not state.stdout.strip() or state.stdout.strip().startswith("Z"):
            return
        time.sleep(0.1)
    os.kill(pid, 9)
    pytest.fail("the answer's child is still running")


def test_a_patched_torch_does_not_pass(scores, runner):
    source = """
        import torch

        torch.Tensor.__eq__ = lambda self, other: True
        torch.equal = torch.allclose = lambda *a, **k: True
        torch.Tensor.abs = lambda self: torch.zeros(())
        torch.Tensor.__sub__ = lambda self, other: torch.zeros(())
        torch.randn = lambda *shape: torch.zeros(shape)


        def attention_scores(q, k):
            return torch.zeros(q.shape[0], q.shape[1], k.shape[1])
    """
    assert not check(scores, source, runner).diagnosis.passed


def test_an_answer_that_edits_the_course_fails_and_the_course_is_restored(scores, runner):
    target = CONTENT / "attention" / "attention_01.py"
    before = target.read_bytes()
    source = f"""
        from pathlib import Path

        path = Path({str(target)!r})
        path.write_text("def attention_scores(q, k):\\n    return q\\n", encoding="utf-8")


        def attention_scores(q, k):
            return q
    """
    try:
        checked = check(scores, source, runner)
        assert target.read_bytes() == before
    finally:
        target.write_bytes(before)
    assert checked.diagnosis.stage == "limit"
    assert "own files" in checked.diagnosis.evidence["en"]
    assert target in own_files()


@pytest.mark.skipif(not LINUX, reason="networks of one's own are Linux's")
def test_there_is_no_network_where_the_system_allows(plain_answers, scores, runner):
    import socket

    server = socket.create_server(("127.0.0.1", 0))
    port = server.getsockname()[1]
    source = f"""
        import socket

        socket.create_connection(("127.0.0.1", {port}), timeout=2).close()
    """
    with server:
        checked = check(scores, source, runner)
    try:
        allowed = subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        allowed = False
    reached = "OSError" not in checked.diagnosis.evidence["en"]
    assert reached != allowed


def test_secrets_of_the_environment_are_not_handed_on(plain_answers, scores, runner, monkeypatch):
    runner.close()
    monkeypatch.setenv("SOME_SECRET_KEY", "swordfish")
    checked = check(scores, "import os\nprint(dict(os.environ))", runner)
    assert "swordfish" not in checked.printed
