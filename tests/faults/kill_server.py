"""Runs trainings in forked children that die at given points; imports torch only once.

Usage: kill_server.py FOLDER; reads plan.json there, writes results.json. The plan is a list of
runs {"name", "settings", "points": [[how, where, step, k], …]}: how it ends (kill, interrupt,
full), where (step, save), at which step, at the k-th operation of the save.
"""

import json
import os
import shutil
import sys
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import conftest
import torch

from foundation.files import sweep_temporaries
from training.checkpoint import latest_checkpoint

INTERRUPTED, NO_SPACE = 2, 3


def forked(work):
    """Run `work` in a child; return its exit status: negative = killed by that signal."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            torch.set_num_threads(1)
            work()
            status = 0
        except KeyboardInterrupt:
            status = INTERRUPTED
        except OSError as error:
            status = NO_SPACE if "No space left" in str(error) else 1
        except BaseException:
            traceback.print_exc()
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def finish(run_dir, out, settings):
    """Train to the end and write down what came of it."""

    def work():
        trainer = conftest.continue_run(run_dir, **settings)
        out.write_text(conftest.digest(trainer), encoding="utf-8")

    return forked(work)


def attempt(run_dir, point, settings):
    """One life of the run, which ends at its point (or, past it, at the end)."""
    how, where, step, k = point
    end = conftest.ENDS[how]
    ending = conftest.EndAtStep(step, end) if where == "step" else conftest.EndInSave(step, k, end)

    def work():
        if where == "step":
            conftest.continue_run(run_dir, hooks=[ending], loss_fn=ending.loss_fn, **settings)
        else:
            with ending.disk.installed():
                conftest.continue_run(run_dir, hooks=[ending], **settings)

    return forked(work)


def live_and_die(folder, run):
    """The same run twice: straight through, and cut off at every point of the plan."""
    settings, name = run["settings"], run["name"]
    straight, broken = folder / f"{name}-straight", folder / f"{name}-broken"
    finish(straight, folder / "straight.txt", settings)
    deaths = [attempt(broken, point, settings) for point in run["points"]]
    finish(broken, folder / "broken.txt", settings)
    return {
        "deaths": deaths,
        **{
            which: {
                "digest": (folder / f"{which}.txt").read_text(encoding="utf-8"),
                "numbers": conftest.numbers_of(folder / f"{name}-{which}"),
            }
            for which in ("straight", "broken")
        },
    }


def die_in_every_place(folder):
    """A save that dies at its k-th disk operation, for every k until it survives.

    Two checkpoints are there before, so that the save also deletes an old one.
    """
    base, outcomes, k = folder / "base", [], 0
    settings = {"save_every": 2, "eval_every": 99}
    forked(conftest.make_run(base, steps=4, **settings).fit)
    while True:
        k += 1
        run_dir = folder / f"death-{k}"
        shutil.copytree(base, run_dir)

        def work(run_dir=run_dir, k=k):
            ending = conftest.EndInSave(6, k, conftest.ENDS["kill"])
            with ending.disk.installed():
                trainer = conftest.make_run(run_dir, steps=6, hooks=[ending], **settings)
                trainer.fit(resume=True, allow_changes=True)

        status = forked(work)
        heard = []
        swept = [path.name for path in sweep_temporaries(run_dir)]
        found = latest_checkpoint(run_dir, heard.append)
        left = sorted(path.name for path in run_dir.glob("step-*"))
        outcomes.append([status, found.step if found else None, swept, left, heard])
        shutil.rmtree(run_dir)
        if status == 0:
            return outcomes


def main(folder):
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    # An optimizer's first call imports a second's worth of modules: once, not in every child.
    torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))]).zero_grad()
    results = {run["name"]: live_and_die(folder, run) for run in plan}
    results["every place"] = die_in_every_place(folder)
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
