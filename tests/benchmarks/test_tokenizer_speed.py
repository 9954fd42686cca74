"""The tokenizer benchmark runs, and compares the ids of every way."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_way_is_measured(fresh_python):
    options = ["--megabytes", "0.1", "--rounds", "1", "--vocab-size", "500"]
    result = fresh_python(
        "benchmarks/tokenizer_speed.py", *options, cwd=ROOT, timeout=200, PYTHONPATH=str(ROOT)
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert len(re.findall(r"(?m)^ours \(encode_batch\) +\d", result.stdout)) == 2
    assert len(re.findall(r"(?m)^tiktoken, 2 threads +\d", result.stdout)) == 2
