"""Two processes on one machine: by torchrun, as a user starts them; or forked, which is quicker."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def torchrun(
    *arguments, n_processes=2, restarts=0, folder=ROOT, wait=True, timeout=200, **environment
):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(n_processes), "--max-restarts", str(restarts)]
    variables = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "PYTHONIOENCODING": "utf-8",
        "USE_LIBUV": "0",  # torch for Windows is built without it
        **environment,
    }
    process = subprocess.Popen(
        [*command, *map(str, arguments)],
        env=variables,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    if not wait:
        return process
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.terminate()  # torchrun ends its processes
        out, err = process.communicate()
        raise AssertionError(f"no end after {timeout} s: {out[-2000:]}{err[-4000:]}") from None
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.fixture(scope="session")
def task():
    """The same task in this process, alone."""
    sys.path.insert(0, str(HERE))
    try:
        return importlib.import_module("task")
    finally:
        sys.path.remove(str(HERE))


@pytest.fixture(scope="session")
def launch():
    return torchrun


@pytest.fixture(scope="session")
def pair(launch, fresh_python):
    """The same two processes for what does not test torchrun: forked where that can be done."""

    def run(*arguments, folder=ROOT):
        if sys.platform != "linux":
            return launch(*arguments, folder=folder)
        forked = HERE / "forked.py"
        return fresh_python(forked, *arguments, cwd=folder, timeout=200, PYTHONPATH=str(ROOT))

    return run


@pytest.fixture(scope="session")
def run_worker(pair):
    """Run scenarios in two processes; what each of them found, by scenario and rank."""

    def run(folder, *scenarios):
        done = pair(HERE / "worker.py", folder, *scenarios)
        assert done.returncode == 0, done.stderr[-4000:]
        return {
            name: [
                json.loads((folder / f"{name}-{rank}.json").read_text(encoding="utf-8"))
                for rank in range(2)
            ]
            for name in scenarios
        }

    return run
