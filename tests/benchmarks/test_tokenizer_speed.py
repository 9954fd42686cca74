"""The tokenizer benchmark runs, and compares the ids of every way."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_way_is_measured():
    script = ROOT / "benchmarks" / "tokenizer_speed.py"
    options = ["--megabytes", "0.1", "--rounds", "1", "--vocab-size", "500"]
    result = subprocess.run(
        [sys.executable, str(script), *options],
        capture_output=True,
        encoding="utf-8",
        timeout=200,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert len(re.findall(r"(?m)^ours \(encode_batch\) +\d", result.stdout)) == 2
    assert len(re.findall(r"(?m)^tiktoken, 2 threads +\d", result.stdout)) == 2
