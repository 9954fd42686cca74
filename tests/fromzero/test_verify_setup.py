"""`python verify_setup.py`: the doctor, and a hint instead of a traceback when something lacks."""

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "verify_setup.py"


def run(*arguments, before=(), **environment):
    return subprocess.run(
        [sys.executable, *before, str(SCRIPT), *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )


def load():
    spec = importlib.util.spec_from_file_location("verify_setup", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_is_the_doctor():
    result = run("--no-compile", "--no-speed")
    assert result.returncode == 0, result.stderr
    assert "matmul fp32" in result.stdout
    assert result.stdout.rstrip().endswith("ready")


def test_missing_packages_give_a_hint_and_no_traceback():
    result = run(before=["-S"])  # without site-packages nothing is installed
    assert result.returncode == 1
    assert "not installed: torch, numpy" in result.stderr
    assert "-m pip install -r requirements.txt" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_torch_that_does_not_load_is_told_apart(tmp_path):
    (tmp_path / "torch.py").write_text(
        "raise OSError('[WinError 126] fbgemm.dll not found')", encoding="utf-8"
    )
    result = run(PYTHONPATH=str(tmp_path))
    assert result.returncode == 1
    assert "torch is installed but does not load: [WinError 126] fbgemm.dll" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_old_python_is_named(monkeypatch, capsys):
    module = load()
    monkeypatch.setattr(sys, "version_info", (3, 9, 1))
    assert module.main() == 1
    assert "Python 3.10 or newer is needed, this is 3.9" in capsys.readouterr().err


def test_an_old_python_can_read_the_file():
    ast.parse(SCRIPT.read_text(encoding="utf-8"), feature_version=(3, 5))
