"""What the doctor says about Python, packages, memory, disk and compilers."""

import os
import re
import sys
import time
from pathlib import Path

import pytest
from packaging.markers import Marker

from foundation import environment
from foundation.environment import (
    REQUIRED_PACKAGES,
    CompileProbe,
    check_disk,
    check_memory,
    check_optional_packages,
    check_packages,
    check_python,
    human_bytes,
    missing_packages,
    usable_cores,
)

ROOT = Path(__file__).resolve().parents[2]


def test_required_packages_are_those_of_pyproject():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = text.split("\ndependencies = [")[1].split("\n]")[0]
    listed = re.findall(r'^\s*"([a-z0-9]+)[^";]*(?:; ([^"]*))?"', block, re.MULTILINE)
    here = [name for name, marker in listed if not marker or Marker(marker).evaluate()]
    assert tuple(here) == REQUIRED_PACKAGES
    assert len(listed) >= len(here) > 9


def test_this_python_is_right():
    assert check_python().status in ("ok", "warn")


def test_an_old_python_is_red(monkeypatch):
    monkeypatch.setattr(environment, "OLDEST_PYTHON", (99, 0))
    finding = check_python()
    assert finding.status == "fail"
    assert "99.0" in finding.advice


def test_missing_and_broken_packages_are_red_and_say_what_to_do(monkeypatch, tmp_path):
    (tmp_path / "broken_package_of_test.py").write_text(
        "raise OSError('no such DLL')\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(tmp_path)
    names = ("rich", "absent_package_of_test", "broken_package_of_test")
    monkeypatch.setattr(environment, "REQUIRED_PACKAGES", names)
    absent, broken, there = check_packages()
    assert (absent.status, broken.status, there.status) == ("fail", "fail", "ok")
    assert "missing" in absent.detail
    assert "no such DLL" in broken.detail
    assert "pip install -r requirements.txt" in absent.advice
    assert missing_packages() == ["absent_package_of_test"]


def test_optional_packages_never_alarm(monkeypatch):
    monkeypatch.setattr(environment, "OPTIONAL_PACKAGES", {"absent_package_of_test": "magic"})
    finding = check_optional_packages()
    assert finding.status == "ok"
    assert "absent_package_of_test (magic)" in finding.detail


def test_memory_and_disk(tmp_path):
    assert check_memory(10**10).status == "ok"
    assert check_memory(10**8).status == "warn"
    assert check_memory(None).status == "warn"
    assert check_disk(tmp_path).status in ("ok", "warn")
    missing = check_disk(tmp_path / "absent")
    assert missing.status == "fail"
    assert "absent" in missing.detail


def test_human_bytes():
    assert [human_bytes(n) for n in (0, 999, 1234, 9_999_999, 84e9, 5e12)] == [
        "0 B",
        "999 B",
        "1.23 kB",
        "10 MB",
        "84 GB",
        "5 TB",
    ]


def test_usable_cores():
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)


def probe_of(monkeypatch, code, **options):
    monkeypatch.setattr(environment, "_PROBE", code)
    return CompileProbe(**options)


@pytest.mark.parametrize(
    ("code", "status", "word"),
    [
        ("print('noise'); print('error', 1e-7, 3.2)", "ok", "3 s"),
        ("print('error', 0.5, 1.0)", "fail", "wrongly"),
        ("print('error', float('nan'), 1.0)", "fail", "wrongly"),
        ("raise RuntimeError('InvalidCxxCompiler: none')", "warn", "no compiler"),
        ("raise RuntimeError('something new')", "warn", "something new"),
        ("import os; os._exit(3)", "warn", "does not work"),
    ],
)
def test_compile_probe_judges_the_child(monkeypatch, code, status, word):
    probe = probe_of(monkeypatch, code)
    finding = probe.finding()
    assert (finding.status, finding.name) == (status, "torch.compile")
    assert word in finding.detail
    assert not Path(probe.cache).exists()


def test_compile_probe_gives_up_in_time_and_ends_the_child(monkeypatch):
    probe = probe_of(monkeypatch, "import time; time.sleep(60)", time_limit=0.5)
    start = time.monotonic()
    finding = probe.finding()
    assert time.monotonic() - start < 10
    assert finding.status == "warn"
    assert "0.5 s" in finding.detail
    assert probe.process.poll() is not None


@pytest.mark.skipif(sys.platform == "win32", reason="process groups")
def test_compile_probe_ends_the_compilers_too(monkeypatch, tmp_path):
    pid_file = tmp_path / "pid"
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(pid_file)!r}, 'w').write(str(child.pid))\n"
        "time.sleep(60)\n"
    )
    probe = probe_of(monkeypatch, code)
    deadline = time.monotonic() + 20
    text = ""
    while not text and time.monotonic() < deadline:
        time.sleep(0.05)
        text = pid_file.read_text(encoding="utf-8") if pid_file.exists() else ""
    grandchild = int(text)
    probe.close()
    deadline = time.monotonic() + 10
    while alive(grandchild) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(grandchild)


def alive(pid):
    """Is the process there and not merely waiting to be buried?"""
    try:
        os.kill(pid, 0)
        status = Path(f"/proc/{pid}/stat")
        return (
            not status.exists()
            or status.read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0] != "Z"
        )
    except (ProcessLookupError, FileNotFoundError):
        return False
