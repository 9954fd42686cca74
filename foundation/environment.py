"""这台机器能用吗？Python、软件包、内存、磁盘、编译器；缺什么，怎样补。

Nothing here imports torch at the top: a machine without it still gets a clear answer.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "INSTALL_HINT",
    "OPTIONAL_PACKAGES",
    "REQUIRED_PACKAGES",
    "CompileProbe",
    "Finding",
    "check_disk",
    "check_memory",
    "check_optional_packages",
    "check_packages",
    "check_python",
    "human_bytes",
    "missing_packages",
    "usable_cores",
]

OLDEST_PYTHON, NEWEST_PYTHON = (3, 10), (3, 13)
INSTALL_HINT = "pip install -r requirements.txt"
# Name to import; on the package index they are called the same. A test compares pyproject.toml.
REQUIRED_PACKAGES = (
    "torch",
    "numpy",
    "safetensors",
    "tokenizers",
    "regex",
    "rich",
    "tyro",
    "matplotlib",
    "jinja2",
    "filelock",
    *(("tomli",) if sys.version_info < (3, 11) else ()),
)
OPTIONAL_PACKAGES = {
    "tensorboard": "live curves in a browser",
    "transformers": "the oracle of many tests",
    "peft": "the oracle of the LoRA tests",
    "pytest": "the tests",
}
ENOUGH_MEMORY = 2_000_000_000  # gpt-micro and torch itself fit into this with room
ENOUGH_DISK = 1_000_000_000  # token shards and the checkpoints of one run


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report: green, yellow or red, and what to do."""

    status: str  # "ok", "warn" or "fail"
    name: str
    detail: str
    advice: str = ""


def check_python() -> Finding:
    """Is this interpreter one the project is tested with?"""
    version = ".".join(str(part) for part in sys.version_info[:3])
    bits = "64-bit" if sys.maxsize > 2**32 else "32-bit"
    detail = f"{version}, {bits}, {sys.executable}"
    supported = f"{OLDEST_PYTHON[0]}.{OLDEST_PYTHON[1]} to {NEWEST_PYTHON[0]}.{NEWEST_PYTHON[1]}"
    if sys.version_info[:2] < OLDEST_PYTHON or bits == "32-bit":
        return Finding("fail", "Python", detail, f"install a 64-bit Python, {supported}")
    if sys.version_info[:2] > NEWEST_PYTHON:
        return Finding("warn", "Python", detail, f"not tested yet; tested: {supported}")
    return Finding("ok", "Python", detail)


def missing_packages() -> list[str]:
    """Return the required packages that are not installed, without importing any."""
    return [name for name in REQUIRED_PACKAGES if importlib.util.find_spec(name) is None]


def check_packages() -> Iterator[Finding]:
    """Import every required package; one that is missing or broken is red."""
    versions = []
    for name in REQUIRED_PACKAGES:
        try:
            importlib.import_module(name)
        except Exception as error:  # a broken binary raises OSError, RuntimeError, …
            why = "is missing" if isinstance(error, ModuleNotFoundError) else "does not load"
            yield Finding("fail", name, f"{why}: {_first_line(error)}", INSTALL_HINT)
            continue
        versions.append(f"{name} {_version(name)}")
    if versions:
        yield Finding("ok", "packages", ", ".join(versions))


def check_optional_packages() -> Finding:
    """List what is there and what is not; nothing here is needed to learn or to train."""
    there = [name for name in OPTIONAL_PACKAGES if importlib.util.find_spec(name)]
    absent = [
        f"{name} ({purpose})" for name, purpose in OPTIONAL_PACKAGES.items() if name not in there
    ]
    detail = ", ".join(f"{name} {_version(name)}" for name in there) or "none"
    if absent:
        detail += f"; not installed and not needed: {', '.join(absent)}"
    return Finding("ok", "optional", detail)


def check_memory(available: int | None) -> Finding:
    """Is there room for torch and a small model?"""
    if available is None:
        return Finding("warn", "memory", "unknown: this system does not tell")
    detail = f"{human_bytes(available)} free"
    if available < ENOUGH_MEMORY:
        advice = f"close programs: training wants {human_bytes(ENOUGH_MEMORY)} or more"
        return Finding("warn", "memory", detail, advice)
    return Finding("ok", "memory", detail)


def check_disk(folder: Path) -> Finding:
    """Can this folder be written, and does it hold a run?"""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        why = f"{folder} cannot be written: {error.strerror}"
        return Finding("fail", "disk", why, "run from a folder of your own")
    free = shutil.disk_usage(folder).free
    detail = f"{human_bytes(free)} free in {folder}"
    if free < ENOUGH_DISK:
        return Finding("warn", "disk", detail, f"a run wants about {human_bytes(ENOUGH_DISK)}")
    return Finding("ok", "disk", detail)


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def human_bytes(number: float) -> str:
    """Shorten a number of bytes: 1234567 → "1.2 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(number) < 999.5:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"


# The child compiles one small function for one device and compares it with eager mode.
_PROBE = """
import sys, time, torch
def function(x, w):
    return torch.nn.functional.gelu(x @ w).softmax(-1).sum(0)
device = sys.argv[1]
x, w = torch.randn(16, 32, device=device), torch.randn(32, 8, device=device)
start = time.monotonic()
error = float((torch.compile(function)(x, w) - function(x, w)).abs().max())
print("error", error, time.monotonic() - start)
"""
# What the compilers' errors look like when there is none; training then simply runs eager.
_NO_COMPILER = ("InvalidCxxCompiler", "No working C++ compiler", "Compiler: cl", "TritonMissing")


class CompileProbe:
    """Try torch.compile in a child process, which may crash or hang without harm.

    It starts at once and works while the caller does something else; `finding` waits for it.
    An empty cache folder makes sure that the compiler really runs.
    """

    def __init__(self, device: str = "cpu", time_limit: float = 30.0) -> None:
        self.device = device
        self.time_limit = time_limit
        self.started = time.monotonic()
        self.cache = tempfile.mkdtemp(prefix="fromzero-compile-")
        environment = {
            **os.environ,
            "TORCHINDUCTOR_CACHE_DIR": self.cache,
            "TORCHINDUCTOR_COMPILE_THREADS": "1",
        }
        self.output = tempfile.TemporaryFile()  # a pipe that nobody reads could fill up
        self.process = subprocess.Popen(
            [sys.executable, "-c", _PROBE, device],
            stdin=subprocess.DEVNULL,
            stdout=self.output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # so that the compilers it starts end with it
        )

    def finding(self) -> Finding:
        """Wait until the child ends or its time is over, and report."""
        remaining = self.started + self.time_limit - time.monotonic()
        try:
            self.process.wait(timeout=max(remaining, 0.1))
        except subprocess.TimeoutExpired:
            limit = f"not ready after {self.time_limit:g} s"
            return Finding("warn", "torch.compile", limit, "training works without it")
        finally:
            self.close()
        return self._judge()

    def close(self) -> None:
        """End the child and whatever it started, and remove its files."""
        if self.process.poll() is None:
            if sys.platform == "win32":
                self.process.kill()
            else:
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        shutil.rmtree(self.cache, ignore_errors=True)

    def _judge(self) -> Finding:
        self.output.seek(0)
        text = self.output.read().decode("utf-8", errors="replace").strip()
        self.output.close()
        last_line = text.rsplit("\n", 1)[-1]
        if self.process.returncode == 0 and last_line.startswith("error "):
            error, seconds = (float(word) for word in last_line.split()[1:])
            if error <= 1e-4:  # NaN is not
                detail = f"works on {self.device}, first compilation {seconds:.0f} s"
                return Finding("ok", "torch.compile", detail)
            detail = f"computes wrongly on {self.device}: error {error:.1e}, bound 1e-04"
            return Finding("fail", "torch.compile", detail, "do not use it; update torch")
        if any(sign in text for sign in _NO_COMPILER):
            advice = "training works without it; to have it, install g++, clang or MSVC"
            return Finding("warn", "torch.compile", "no compiler found", advice)
        cause = next((x for x in reversed(text.split("\n")) if "Error" in x), last_line)
        detail = f"does not work on {self.device}: {cause.strip()[:120]}"
        return Finding("warn", "torch.compile", detail, "training works without it")


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).split("\n", 1)[0]
