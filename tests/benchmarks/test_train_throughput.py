"""The throughput benchmark runs, and its figures are of the steps it says."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = "benchmarks/train_throughput.py"


@pytest.fixture
def run(fresh_python):
    def start(*options):
        options = ("--shapes", "micro12", "--rounds", "1", *options)
        how = {"cwd": ROOT, "timeout": 280, "PYTHONPATH": str(ROOT), "FORK_CHILDREN": "1"}
        done = fresh_python(SCRIPT, *options, **how)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return start


def test_the_table_beside_hugging_face(run, tmp_path):
    printed = run("--steps", "2", "--json", str(tmp_path / "figures.json"))
    (table,) = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert set(table["rows"]) == {"ours-fp32", "ours-bf16", "hf-fp32", "hf-bf16"}
    flops = 6 * (12 * 4 * 128**2 + 65 * 128) + 12 * 4 * 128 * 64
    for name, row in table["rows"].items():
        assert name in printed
        assert 0 < row["min"] <= row["seconds"]
        peak = table["peak"][name.split("-")[1]]
        assert row["share"] == pytest.approx(flops * 12 * 64 / row["seconds"] / peak)
    assert "x the best peer" in printed


@pytest.mark.slow
def test_each_speed_up_is_switched_off_and_checkpointing_keeps_less(run, tmp_path):
    printed = run("--steps", "1", "--shares")
    for name in (
        "bf16",
        "written",
        "joined",
        "pieces",
        "blocked",
        "backward",
        "chunks",
        "memory",
        "fused",
    ):
        assert f"without {name}" in printed
    run("--steps", "1", "--checkpointing", "--json", str(tmp_path / "figures.json"))
    (table,) = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    kept = [table["rows"][f"ours-bf16{kind}"]["kept"] for kind in ("", "-selective", "-block")]
    assert kept[0] > 1.2 * kept[1] > 1.2 * kept[2] > 0
