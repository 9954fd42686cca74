"""The benchmark of shared prompts compares the tokens and knows what has to be read."""

import importlib
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def prefix_reuse(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, "prefix_reuse", raising=False)
    return importlib.import_module("prefix_reuse")


def test_a_quick_run(prefix_reuse, monkeypatch, capsys):
    options = ["--quick", "--rows", "3", "--shared", "40", "--rests", "5"]
    monkeypatch.setattr(sys, "argv", ["prefix_reuse.py", *options])
    prefix_reuse.main()
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.count("|") == 5
    # 3 × 45 tokens: 45 for one prompt, 40 + 3 × 5 for a common beginning, or all of them; at last
    # 45 in one row, of which an earlier call has read 40
    ratios = ["3.00"] * 2 + ["2.45"] * 2 + ["1.00"] * 2 + ["9.00"] * 2
    assert [row.split(" | ")[-1] for row in rows] == ratios
    assert all(float(row.split(" | ")[4]) > 0 for row in rows)


def test_other_tokens_stop_it(prefix_reuse, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["prefix_reuse.py", "--quick", "--rows", "2"])
    monkeypatch.setattr(
        prefix_reuse, "first_token", lambda model, prompts, sharing, _: (1.0, [int(sharing)])
    )
    with pytest.raises(SystemExit, match="one prompt, PyTorch: the tokens differ"):
        prefix_reuse.main()
