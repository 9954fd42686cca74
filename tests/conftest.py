"""Every test: one thread (two workers share two cores), no network, seeds fixed."""

import contextlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the processes that tests start, too
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")

import pytest
import torch
from hypothesis import settings

from foundation.compiled_code import CodeUnavailable, compile_code

settings.register_profile("default", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("default")
torch.set_num_threads(1)


def pytest_configure(config):
    """Compile the kernels before the workers start: each would, and say so on standard error."""
    if not hasattr(config, "workerinput") and os.environ.get("FROMZERO_KERNELS") != "0":
        with contextlib.suppress(CodeUnavailable):
            compile_code(Path(__file__).parents[1] / "inference" / "kernels" / "forward.cpp")


@pytest.fixture(autouse=True)
def _seeded():
    # torch.manual_seed notes the call stack for each kind of accelerator: a third of a millisecond
    torch.default_generator.manual_seed(0)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(0)


@pytest.fixture(scope="session")
def template():
    """A process that has loaded the libraries, and forks: see fresh_python.py."""
    path = Path(__file__).with_name("fresh_python.py")
    spec = importlib.util.spec_from_file_location("fresh_python", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    python = module.FreshPython()
    yield python
    python.close()


@pytest.fixture(scope="session")
def fresh_python(template):
    """`fresh_python("script.py", cwd=folder)` runs it to its end."""
    return template.run


@pytest.fixture
def forked_answers(template, monkeypatch):
    """The course's answers run in forks, which have loaded PyTorch, where the system can fork."""
    from course.child_process import DRIVER
    from evaluation import code_runner

    def start(words, *, cwd, env, **more):
        if str(DRIVER) not in words:
            return subprocess.Popen(words, cwd=cwd, env=env, **more)
        return template.start(words[1:], cwd, env)

    if sys.platform == "linux":
        replaced = SimpleNamespace(**{**vars(subprocess), "Popen": start})
        monkeypatch.setattr(code_runner, "subprocess", replaced)
