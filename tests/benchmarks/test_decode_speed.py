"""The decoding benchmark runs, takes turns, and computes shares as it says."""

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from foundation.compiled_code import CodeUnavailable
from inference.kernel_interface import load_kernels

ROOT = Path(__file__).resolve().parents[2]


def load():
    spec = importlib.util.spec_from_file_location(
        "decode_speed", ROOT / "benchmarks" / "decode_speed.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["decode_speed"] = module
    spec.loader.exec_module(module)
    return module


def test_the_share_of_the_limit_is_bytes_times_speed():
    """10 tokens a second of 4 GB, where 80 GB a second can be read: half."""
    rounds = [{"first": 0.5, "all": 0.5 + 0.9, "peak": 7.0}]
    engine = SimpleNamespace(name="x", rounds=rounds, n_bytes=4e9, limit=80e9)
    arguments = SimpleNamespace(new=10, rows=2, prompt=5)
    row = load().table([engine], arguments).splitlines()[-1]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:5] == ["x", "20.0", "50%", "500.0", "20"]


def test_it_runs_on_a_small_model_and_names_what_is_missing(fresh_python, tmp_path):
    try:
        load_kernels()
    except CodeUnavailable as error:
        pytest.skip(str(error))
    command = ["benchmarks/decode_speed.py", "--model", "gpt-micro"]
    command += ["--new", "4", "--prompt", "8", "--rounds", "1", "--rows", "2"]
    command += ["--only", "ours:fp32", "ours:int4", "ct2:fp32", "--folder", str(tmp_path)]
    variables = {"PYTHONPATH": str(ROOT), "DECODE_PEERS": sys.executable, "FORK_CHILDREN": "1"}
    result = fresh_python(*command, cwd=ROOT, timeout=200, **variables)
    assert result.returncode == 0, result.stderr[-2000:]
    rows = [line for line in result.stdout.splitlines() if line.startswith("| ours:")]
    assert [row.split()[1] for row in rows] == ["ours:fp32", "ours:int4"]
    if importlib.util.find_spec("ctranslate2") is None:
        assert "No module named 'ctranslate2'" in result.stdout
