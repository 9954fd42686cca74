"""一小段 C++：第一次用到时编译，以后直接取用；没有编译器，就说一句原因，另走别的路。

    a compiler, nothing kept     c++ -O3 -march=native …      a few seconds, once, announced
    kept from an earlier run     read from the cache folder   milliseconds
    no compiler, or it fails     CodeUnavailable says why     the caller goes another way

The name of what is kept is a hash of the sources, the compiler, the flags and the instructions
that the processor knows: a home directory is often shared by several machines, and a library made
for a newer one would crash an older one. Two processes that compile at once write to files of
their own and rename them; both hold the same, so whoever comes last does no harm. A half-written
library would not fail to load but crash the process (a bus error), so each is sealed with a hash
of its content, and one that does not match is made again.

Why not torch.utils.cpp_extension? It compiles PyTorch's headers too, for half a minute, and what
it makes belongs to one version of PyTorch. Pointers passed through ctypes are enough.

FROMZERO_CACHE names another cache folder; FROMZERO_KERNELS=0 turns compiled code off.
"""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from functools import lru_cache
from pathlib import Path

__all__ = ["CodeUnavailable", "cache_folder", "compile_code", "find_compiler", "load_code"]

FLAGS = ("-O3", "-std=c++17", "-fPIC", "-shared", "-w")
# all the instructions this processor has; some compilers (Apple's older ones) know the second only
NATIVE = (("-march=native",), ("-mcpu=native",), ())
# the threads are PyTorch's own, through OpenMP; without it one thread does all
THREADS = (("-fopenmp",), ())
LONGEST = 120.0  # seconds: a compiler that hangs is a compiler that fails


class CodeUnavailable(RuntimeError):  # noqa: N818 - it says what to do without, not what broke
    """Nothing can be compiled, or nobody wants it; the message says why."""


def cache_folder() -> Path:
    """Where compiled code is kept: FROMZERO_CACHE, or where each system keeps caches."""
    given = os.environ.get("FROMZERO_CACHE")
    if given:
        return Path(given)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", str(Path.home()))) / "fromzero"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "fromzero"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fromzero"


def find_compiler() -> str:
    """The C++ compiler: the one CXX names, or the first of the usual ones."""
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        found = shutil.which(name) if name else None
        if found:
            return found
    raise CodeUnavailable(
        "no C++ compiler (c++, g++ or clang++) was found; install one, for example "
        "`apt install g++` or `xcode-select --install`"
    )


@lru_cache(maxsize=8)
def load_code(source: Path, flags: tuple[str, ...] | None = None) -> ctypes.CDLL:
    """The library made from `source` and the files beside it; loaded once in a process.

    flags stand for -march=native: other instructions than this processor's best.
    """
    if os.environ.get("FROMZERO_KERNELS") == "0":
        raise CodeUnavailable("FROMZERO_KERNELS=0 turns compiled code off")
    try:
        return ctypes.CDLL(str(compile_code(source, flags)))
    except OSError as error:
        raise CodeUnavailable(f"the compiled code does not load: {error}") from None


def compile_code(source: Path, flags: tuple[str, ...] | None = None) -> Path:
    """The path of the compiled library, taken from the cache or made now."""
    compiler = find_compiler()
    native, macros = machine_flags(compiler)
    chosen = native if flags is None else flags
    digest = hashlib.sha256()
    for file in sorted(source.parent.iterdir()):
        digest.update(file.read_bytes())
    digest.update("\0".join((compiler, macros, *FLAGS, *chosen)).encode())
    folder = usable_folder()
    target = folder / f"{source.stem}-{digest.hexdigest()[:20]}.so"
    if is_whole(target):
        return target
    say(f"compiling {source.name}, once for this machine …")
    began = time.perf_counter()
    made = compile_to_temporary([compiler, *FLAGS, *chosen], source, folder)
    seal(made)
    os.replace(made, target)
    say(f"compiled in {time.perf_counter() - began:.1f} s, kept in {folder}")
    return target


def say(text: str) -> None:
    """Standard error, at once: whoever waits should know for what."""
    print(text, file=sys.stderr, flush=True)


@lru_cache(maxsize=8)
def machine_flags(compiler: str) -> tuple[tuple[str, ...], str]:
    """The flags that mean this processor, and every macro the compiler then defines.

    The macros tell its version and each set of instructions: what the name of the library needs.
    """
    for native in NATIVE:
        empty = run_compiler([compiler, *native, "-dM", "-E", "-x", "c++", os.devnull])
        if empty.returncode == 0:
            return native, empty.stdout
    raise CodeUnavailable(f"{compiler} does not work: {last_line(empty.stderr)}")


def run_compiler(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Run the compiler once and keep what it says; running too long is failing."""
    try:
        return subprocess.run(
            arguments,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=LONGEST,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CodeUnavailable(f"the C++ compiler could not be run: {error}") from None


def last_line(text: str) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def usable_folder() -> Path:
    """The cache folder, or, where it cannot be written, a private one for this process only.

    Never a fixed name in a folder that others may write to: they could put a library there.
    """
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        private = Path(tempfile.mkdtemp(prefix="fromzero-"))
        atexit.register(shutil.rmtree, private, ignore_errors=True)
        return private


def compile_to_temporary(command: list[str], source: Path, folder: Path) -> Path:
    """Compile into a file of our own; nothing is left of it when that fails."""
    handle, name = tempfile.mkstemp(suffix=".so", dir=folder)
    os.close(handle)
    made = Path(name)
    for threads in THREADS:
        result = run_compiler([*command, *threads, str(source), "-o", name])
        if result.returncode == 0:
            return made
    made.unlink(missing_ok=True)
    raise CodeUnavailable(f"{command[0]} failed: {last_line(result.stderr)}")


def seal(path: Path) -> None:
    """Append the hash of the content; a library is read by its own lengths and never sees it."""
    with path.open("ab") as file:
        file.write(hashlib.sha256(path.read_bytes()).digest())


def is_whole(path: Path) -> bool:
    """Is it there, and is the hash that of the content?"""
    try:
        data = path.read_bytes()
    except OSError:
        return False
    return len(data) > 32 and hashlib.sha256(data[:-32]).digest() == data[-32:]
