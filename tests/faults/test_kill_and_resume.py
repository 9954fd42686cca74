"""A run killed anywhere goes on bit for bit as if nothing had happened."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"}
SEED = 20_26


def kill_points(n_points, n_steps):
    """Seeded places to die: half in the middle of a step, half inside a save."""
    numbers = random.Random(SEED)
    steps = sorted(numbers.sample(range(n_steps), n_points))
    kinds = ["step", "save"] * (n_points // 2)
    numbers.shuffle(kinds)
    return [(kind, step, numbers.randrange(1, 25)) for kind, step in zip(kinds, steps, strict=True)]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    if not hasattr(os, "fork"):
        pytest.skip("this system cannot fork; the test below kills a whole process instead")
    folder = tmp_path_factory.mktemp("kills")
    (folder / "plan.json").write_text(json.dumps(kill_points(20, 27)), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(HERE / "kill_server.py"), str(folder)],
        env=ENVIRONMENT,
        cwd=HERE.parents[1],
        capture_output=True,
        encoding="utf-8",
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def test_twenty_deaths_leave_no_trace(results):
    assert results["deaths"] == [-9] * 20  # every child really was killed
    assert results["broken"] == results["straight"]  # weights, moments, counters
    assert results["broken numbers"] == results["straight numbers"]  # every step's loss


def test_a_save_that_dies_at_any_operation_leaves_a_good_step(results):
    *deaths, survivor = results["every place"]
    assert len(deaths) >= 15
    assert survivor[0] == 0
    assert survivor[1] == 6
    for number, (status, step, _) in enumerate(deaths, 1):
        assert status == -9, number
        assert step in (4, 6), number
    # dying early keeps the old step, dying after the rename the new one
    steps = [step for _, step, _ in deaths]
    assert steps == sorted(steps)
    assert steps[0] == 4
    # what is half written never looks like a checkpoint
    swept = [name for _, _, names in deaths for name in names]
    assert any(name.startswith("step-000006.tmp-") for name in swept)


CHILD = """
import sys
sys.path.insert(0, sys.argv[1])
import conftest, torch
torch.set_num_threads(1)
class Say(conftest.Hook):
    def on_step(self, trainer, report):
        print(report.step, flush=True)
        if report.step == 11:
            sys.stdin.read()  # wait here to be killed
conftest.continue_run(sys.argv[2], hooks=[Say()])
"""


def test_a_process_killed_from_outside_goes_on(tmp_path, faults):
    broken, straight = tmp_path / "broken", tmp_path / "straight"
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(HERE), str(broken)],
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    ) as child:
        steps = [child.stdout.readline().strip() for _ in range(11)]
        child.kill()
    assert steps == [str(step) for step in range(1, 12)]
    resumed = faults.continue_run(broken)
    whole = faults.continue_run(straight)
    assert faults.digest(resumed) == faults.digest(whole)
    assert faults.numbers_of(broken) == faults.numbers_of(straight)
