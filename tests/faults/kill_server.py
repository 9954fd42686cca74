"""Runs trainings in forked children that die at given points; imports torch only once.

Usage: kill_server.py FOLDER; reads plan.json there, writes results.json.
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


def forked(work):
    """Run `work` in a child; return its exit status: negative = killed by that signal."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            torch.set_num_threads(1)
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def finish(run_dir, out):
    """Train to the end and write down what came of it."""

    def work():
        trainer = conftest.continue_run(run_dir)
        out.write_text(conftest.digest(trainer), encoding="utf-8")

    return forked(work)


def attempt(run_dir, kind, step, k):
    """One life of the run, which ends at its kill point (or, past it, at the end)."""
    killer = conftest.KillAtStep(step) if kind == "step" else conftest.KillInSave(step, k)

    def work():
        if kind == "step":
            conftest.continue_run(run_dir, hooks=[killer], loss_fn=killer.loss_fn)
        else:
            with killer.disk.installed():
                conftest.continue_run(run_dir, hooks=[killer])

    return forked(work)


def die_in_every_place(folder):
    """A save that dies at its k-th disk operation, for every k until it survives."""
    base, outcomes, k = folder / "base", [], 0
    trainer = conftest.make_run(base, steps=4, save_every=3)
    forked(trainer.fit)
    while True:
        k += 1
        run_dir = folder / f"death-{k}"
        shutil.copytree(base, run_dir)

        def work(run_dir=run_dir, k=k):
            killer = conftest.KillInSave(6, k)
            with killer.disk.installed():
                trainer = conftest.make_run(run_dir, steps=6, save_every=3, hooks=[killer])
                trainer.fit(resume=True, allow_changes=True)

        status = forked(work)
        swept = [path.name for path in sweep_temporaries(run_dir)]
        found = latest_checkpoint(run_dir)
        outcomes.append([status, found.step if found else None, swept])
        shutil.rmtree(run_dir)
        if status == 0:
            return outcomes


def main(folder):
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    # An optimizer's first call imports a second's worth of modules: once, not in every child.
    torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))]).zero_grad()
    results = {"deaths": []}
    straight, broken = folder / "straight", folder / "broken"
    finish(straight, folder / "straight.txt")
    for kind, step, k in plan:
        results["deaths"].append(attempt(broken, kind, step, k))
    finish(broken, folder / "broken.txt")
    for name in ("straight", "broken"):
        results[name] = (folder / f"{name}.txt").read_text(encoding="utf-8")
        results[f"{name} numbers"] = conftest.numbers_of(folder / name)
    results["every place"] = die_in_every_place(folder)
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
