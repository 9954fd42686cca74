"""每一步都向系统要内存、又还回去，要花多少时间？——让 C 库把还回来的内存留着下次用。

A training step frees its activations and asks for the same amount again. glibc hands large blocks
back to the system at once, so every step the kernel maps and zeroes the same pages anew: at
gpt2's size 400,000 page faults, a quarter of the step. Two settings of malloc keep them:

    M_MMAP_MAX = 0            large blocks come from the heap too, not from fresh mappings
    M_TRIM_THRESHOLD = max    the heap is not given back while the process lives

The price: memory once used stays with the process, and a freed block is a few bytes short of the
next of its size (torch asks for aligned ones), so the heap grows past the peak of the tensors:
`benchmarks/plan_accuracy.py --kept` prints by how much. Whoever recomputes activations is short of
memory, not of time: for them return_freed_memory does the opposite.

    M_MMAP_THRESHOLD = 128 k  every larger block is mapped by itself and unmapped when freed

Elsewhere (Windows, macOS, musl) nothing happens.
"""

from __future__ import annotations

import ctypes
import os
import platform

__all__ = ["keep_freed_memory", "return_freed_memory", "trim_freed_memory"]

# from glibc's malloc.h; the numbers are part of its binary interface
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
MMAP_MAX, TRIM_THRESHOLD = 65536, 128 * 1024  # the defaults
THRESHOLD = 128 * 1024  # its default too, but a default grows
LARGEST_INT = 2**31 - 1
CHOSEN = (
    "MALLOC_MMAP_MAX_",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TRIM_THRESHOLD_",
    "GLIBC_TUNABLES",
)


def keep_freed_memory() -> bool:
    """Tell glibc's malloc to reuse freed memory instead of returning it; True if it listened.

    Call it once, before training; the setting lasts as long as the process. Whoever has set
    one of the variables in CHOSEN keeps what was set.
    """
    return _set_malloc({M_MMAP_MAX: 0, M_TRIM_THRESHOLD: LARGEST_INT})


def return_freed_memory() -> bool:
    """Tell it to give large blocks back as soon as they are freed; True if it listened.

    Left alone, glibc raises its threshold to 32 MB as blocks are freed, and keeps most of them.
    """
    settings = {M_MMAP_MAX: MMAP_MAX, M_TRIM_THRESHOLD: TRIM_THRESHOLD}
    return _set_malloc({**settings, M_MMAP_THRESHOLD: THRESHOLD})


def trim_freed_memory() -> bool:
    """Give back to the system, now, what was freed; true where the C library can (glibc).

    For after a piece of work that needed far more memory than what comes next.
    """
    if platform.system() != "Linux":
        return False
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return False
    return bool(trim(0))


def _set_malloc(settings: dict[int, int]) -> bool:
    """Settings of glibc's malloc, unless somebody has chosen otherwise."""
    if platform.libc_ver()[0] != "glibc":
        return False
    if any(name in os.environ for name in CHOSEN):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    # mallopt answers 1 for yes
    return all([bool(mallopt(name, value)) for name, value in settings.items()])
