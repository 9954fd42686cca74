"""A run killed anywhere goes on bit for bit as if nothing had happened."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from training.optimizer import OPTIMIZERS

HERE = Path(__file__).resolve().parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"}
SEED = 20_26


N_STEPS = 30
LAST = 27  # a save comes after this step: a point inside a save is sure to be reached

# Every kind of training that has a state of its own: optimizers, precisions, adapters, watches.
# Each is cut off six times in one training: killed, interrupted and out of space.
VARIANTS = {
    **{f"optimizer-{name}": {"optimizer": name} for name in OPTIMIZERS},
    "one-batch": {"grad_accumulation": 1},
    "accumulation-3": {"grad_accumulation": 3},
    "bf16": {"precision": "bf16"},
    "fp16": {"kind": "fp16"},
    "lora": {"kind": "lora"},
    "deterministic": {"deterministic": True},
    "skipped-spikes": {
        "spike_action": "skip",
        "spike_window": 8,
        "spike_factor": 2.5,
        "max_skipped_steps": 99,
    },
}


def end_points(seed, n_points, ends):
    """Seeded places to end: half in the middle of a step, half inside a save."""
    numbers = random.Random(seed)
    steps = sorted(numbers.sample(range(LAST), n_points))
    places = ["step", "save"] * (n_points // 2)
    numbers.shuffle(places)
    points = []
    for number, (where, step) in enumerate(zip(places, steps, strict=True)):
        how = ends[number % len(ends)]
        # a step has no disk to fill; a save of these runs has more than 20 operations
        how = "kill" if (how, where) == ("full", "step") else how
        points.append([how, where, step, numbers.randrange(1, 20)])
    return points


PLAN = [
    {"name": "main", "settings": {}, "points": end_points(SEED, 20, ["kill"])},
    *(
        {
            "name": name,
            "settings": settings,
            "points": end_points(name, 6, ["kill", "interrupt", "full"]),
        }
        for name, settings in VARIANTS.items()
    ),
]
STATUS = {"kill": -9, "interrupt": 2, "full": 3}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    if not hasattr(os, "fork"):
        pytest.skip("this system cannot fork; the test below kills a whole process instead")
    folder = tmp_path_factory.mktemp("kills")
    (folder / "plan.json").write_text(json.dumps(PLAN), encoding="utf-8")
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


@pytest.mark.parametrize("run", PLAN, ids=[run["name"] for run in PLAN])
def test_ends_leave_no_trace(results, run):
    """Twenty deaths (or six ends of three kinds) in one training equal none, to the bit."""
    found = results[run["name"]]
    # every child really was killed, interrupted or out of space
    assert found["deaths"] == [STATUS[how] for how, *_ in run["points"]]
    straight, broken = found["straight"], found["broken"]
    assert broken["digest"] == straight["digest"]  # weights, moments, generators, counters
    losses = [record["loss"] for record in straight["numbers"] if "learning_rate" in record]
    assert len(set(losses)) > 10
    assert broken["numbers"] == straight["numbers"]  # every step's loss, every warning


def test_the_plan_ends_in_both_places_and_in_every_way():
    main, *variants = (run["points"] for run in PLAN)
    assert [where for _, where, _, _ in main].count("save") == 10
    for points in variants:
        assert {where for _, where, _, _ in points} == {"step", "save"}
    assert {how for points in variants for how, *_ in points} == {"kill", "interrupt", "full"}


@pytest.mark.parametrize(
    ("name", "key"),
    [("fp16", "skipped"), ("skipped-spikes", "spikes"), ("skipped-spikes", "skipped")],
)
def test_the_state_that_is_to_come_back_was_in_use(results, name, key):
    """The loss scale overflowed and the watch skipped: forgetting either would show above."""
    assert any(key in record for record in results[name]["straight"]["numbers"])


def test_a_save_that_dies_at_any_operation_leaves_a_good_step(results):
    *deaths, survivor = results["every place"]
    assert len(deaths) >= 30
    assert survivor[0] == 0
    assert survivor[1] == 6
    assert survivor[3] == ["step-000004", "step-000006"]  # the oldest is gone
    for number, (status, step, _, left, heard) in enumerate(deaths, 1):
        assert status == -9, number
        assert step in (4, 6), number
        # what is half written or half deleted never looks like a checkpoint
        assert heard == [], number
        # the old one is deleted only when the new one is there
        assert "step-000002" in left or "step-000006" in left, number
    # dying early keeps the old step, dying after the rename the new one
    steps = [step for _, step, *_ in deaths]
    assert steps == sorted(steps)
    assert (steps[0], steps[-1]) == (4, 6)
    swept = [name for _, _, names, *_ in deaths for name in names]
    assert any(name.startswith("step-000006.tmp-") for name in swept)  # died while writing
    assert any(name.startswith("step-000002.tmp-") for name in swept)  # died while deleting


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
