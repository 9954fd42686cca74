"""Two processes on one machine, started as a user would: by torchrun."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def torchrun(*arguments, restarts=0):
    """The words after `python`."""
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return [*start, "--max-restarts", str(restarts), *map(str, arguments)]


# torch for Windows is built without libuv
VARIABLES = {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8", "USE_LIBUV": "0"}


@pytest.fixture(scope="session")
def task():
    """The same task in this process, alone."""
    sys.path.insert(0, str(HERE))
    try:
        return importlib.import_module("task")
    finally:
        sys.path.remove(str(HERE))


@pytest.fixture(scope="session")
def launch(fresh_python):
    """Wait for the end of torchrun, which is forked on Linux, and forks its processes."""

    def run(*arguments, restarts=0, folder=ROOT, **environment):
        return fresh_python(
            *torchrun(*arguments, restarts=restarts),
            cwd=folder,
            timeout=200,
            FORK_CHILDREN="1",
            **VARIABLES,
            **environment,
        )

    return run


@pytest.fixture(scope="session")
def launch_plainly():
    """Start torchrun as a program of its own, and do not wait."""

    def run(*arguments, restarts=0, folder=ROOT):
        return subprocess.Popen(
            [sys.executable, *torchrun(*arguments, restarts=restarts)],
            env={**os.environ, "OMP_NUM_THREADS": "1", **VARIABLES},
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
        )

    return run


@pytest.fixture(scope="session")
def run_worker(launch):
    """Run scenarios in two processes; what each of them found, by scenario and rank."""

    def run(folder, *scenarios):
        done = launch(HERE / "worker.py", folder, *scenarios)
        assert done.returncode == 0, done.stderr[-4000:]
        return {
            name: [
                json.loads((folder / f"{name}-{rank}.json").read_text(encoding="utf-8"))
                for rank in range(2)
            ]
            for name in scenarios
        }

    return run
