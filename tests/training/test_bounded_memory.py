"""A corpus larger than what it may cost in memory: one long line, through the whole way."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

MEASURE = """
import sys
from pathlib import Path
from training import documents, token_parts
from training.prepare import prepare_data
documents.MAX_DOCUMENT_CHARS = token_parts.PART_CHARS = 1 << 16  # all sizes 32 times smaller
def peak():
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(l.split()[1]) for l in status.splitlines() if l.startswith("VmHWM"))
before = peak()
if __name__ == "__main__":
    train, val = prepare_data(sys.argv[1], "characters", sys.argv[2])
    print(train.n_tokens + val.n_tokens, (peak() - before) // 1000)
"""
MEGABYTES = 8


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_a_long_line_is_tokenized_in_bounded_memory(tmp_path):
    """Read or tokenized as a whole, eight megabytes of characters take more than a gigabyte."""
    path = tmp_path / "line.txt"
    with open(path, "wb") as file:
        for _ in range(MEGABYTES):
            file.write(b"the cat sat on a" * 62_500)
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path), str(tmp_path / "data")],
        capture_output=True,
        encoding="utf-8",
        timeout=200,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    n_tokens, megabytes = map(int, re.findall(r"\d+", result.stdout))
    assert n_tokens >= MEGABYTES * 1_000_000
    assert megabytes < 100
