"""The benchmark of preparing data runs, kills, and finds the same bytes again."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs /proc")
def test_it_measures_and_finds_the_same_bytes_after_a_kill():
    script = ROOT / "benchmarks" / "prepare_data.py"
    result = subprocess.run(
        [sys.executable, str(script), "--megabytes", "9", "--vocab-size", "400", "--kill"],
        capture_output=True,
        encoding="utf-8",
        timeout=200,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert "whole run" in result.stdout
    assert "the same bytes: yes" in result.stdout
