"""The benchmarks on tinyshakespeare run, on a text of a few thousand characters."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    lines = [f"{n} times {n + 1} is {n * (n + 1)}, said line {n % 7}.\n" for n in range(900)]
    path.write_text("".join(lines), encoding="utf-8", newline="\n")
    return path


@pytest.fixture
def run(fresh_python):
    def start(script, *options):
        done = fresh_python(
            f"benchmarks/{script}", *options, cwd=ROOT, timeout=280, PYTHONPATH=str(ROOT)
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return start


def test_time_to_loss_prints_every_contender(run, text):
    out = run("time_to_loss.py", "--data", text, "--quick", "--only", "classic", "sprint")
    table = out.split("each loss\n")[1]
    classic, sprint = (
        re.search(rf"^ *{name} .*$", table, flags=re.M)[0] for name in ("classic", "sprint")
    )
    assert " 0.08 M " in classic  # 100 steps of 12 x 64
    assert " 0.01 M " in sprint  # 11 steps of 16 x 64
    loss = r"(\d\.\d{4})$"
    assert float(re.search(loss, classic)[1]) < 3.5
    assert float(re.search(loss, sprint)[1]) < 3.5
    assert "1/1.0" in classic


def test_the_ablation_compares_with_the_base(run, text):
    out = run("recipe_ablation.py", "--data", text, "--quick", "--only", "4 layers, no pairs")
    base, change = (line for line in out.splitlines()[2:] if line)
    base_loss = re.match(r"base +(\d\.\d{4}) +1\.00 +1\.00$", base)[1]
    loss, gap, work = re.match(
        r".*pairs +(\d\.\d{4}) +([+-]\d\.\d{4}) +(\d\.\d\d) ", change
    ).groups()
    assert abs(float(loss) - float(base_loss) - float(gap)) < 2e-4
    assert 1.2 < float(work) < 4 / 3  # a fourth layer; the head stays


def test_the_promises_are_judged_by_loss_and_time():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        from time_to_loss import verdicts
        from tinyshakespeare import Run
    finally:
        sys.path.pop(0)

    def judge(sprint, steady, speedrun):
        results = {"nanoGPT": (1.90, 100.0), "sprint": sprint, "steady": steady}
        results["speedrun"] = speedrun
        runs = {name: [Run(loss, s, s, 1, 1)] for name, (loss, s) in results.items()}
        return [line.split()[0] for line in verdicts(runs, "nanoGPT")]

    assert judge((1.89, 9.9), (1.49, 99.0), (1.46, 500.0)) == ["met"] * 3
    assert judge((1.89, 10.1), (1.49, 101.0), (1.47, 5.0)) == ["MISSED"] * 3
    assert judge((1.91, 1.0), (1.51, 1.0), (1.46, 1.0)) == ["MISSED", "MISSED", "met"]
