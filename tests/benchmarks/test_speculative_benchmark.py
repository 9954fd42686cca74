"""The speculation benchmark learns once, compares texts, and counts each contender's rounds."""

import importlib
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def speculative(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, "speculative", raising=False)
    module = importlib.import_module("speculative")
    for name, shape in module.SHAPES.items():
        small = {**shape, "dim": 32, "n_layers": 1, "n_heads": 2}
        monkeypatch.setitem(module.SHAPES, name, small)
    monkeypatch.setattr(module, "VOCABULARY", 300)
    return module


def test_a_small_run(speculative, monkeypatch, capsys, tmp_path):
    data = tmp_path / "data.txt"
    data.write_text("the quick brown fox jumps over the lazy dog; " * 400, encoding="utf-8")
    options = ["--data", data, "--models", tmp_path / "models", "--steps", 3, "--rounds", 2]
    options += ["--prompts", 2, "--tokens", 20, "--temperatures", 0.8]
    monkeypatch.setattr(sys, "argv", ["speculative.py", *map(str, options)])
    speculative.main()
    first = capsys.readouterr().out
    assert "loss" in first
    assert first.count("4 of 4") == 5
    speculative.main()  # kept: nothing is learned again
    assert "loss" not in capsys.readouterr().out


def test_ratios_are_of_the_same_round(speculative):
    plain, other = speculative.Tally([1.0, 9.0, 1.0]), speculative.Tally([0.5, 4.5, 9.0])
    row = speculative.table({"plain": plain, "draft": other}, 100)[2]
    assert row.split(" | ")[:3] == ["draft", "22", "2.00"]
