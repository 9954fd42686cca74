"""The benchmark of preparing data measures; what its --kill does is tested in test_token_parts."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs /proc")
def test_it_measures_memory_and_speed(fresh_python):
    options = ("--megabytes", "2", "--vocab-size", "300")
    result = fresh_python(
        "benchmarks/prepare_data.py", *options, cwd=ROOT, timeout=200, PYTHONPATH=str(ROOT)
    )
    assert result.returncode == 0, result.stderr[-2000:]
    found = re.search(r"whole run +(\d+) s +([\d.]+) MB/s +([\d,]+) MB", result.stdout)
    assert found
    assert float(found[2]) > 0
    assert 50 < int(found[3].replace(",", "")) < 1500
