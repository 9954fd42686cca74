"""每一步都向系统要内存、又还回去，要花多少时间？——让 C 库把还回来的内存留着下次用。

A training step frees its activations and asks for the same amount again. glibc hands large blocks
back to the system at once, so every step the kernel maps and zeroes the same pages anew: at
gpt2's size 400,000 page faults, a quarter of the step. Two settings of malloc keep them:

    M_MMAP_MAX = 0            large blocks come from the heap too, not from fresh mappings
    M_TRIM_THRESHOLD = max    the heap is not given back while the process lives

The price: memory once used stays with the process. Elsewhere (Windows, macOS, musl) nothing
happens. `benchmarks/speed_shares.py` prints what it gives.
"""

from __future__ import annotations

import ctypes
import os
import platform

__all__ = ["keep_freed_memory"]

# from glibc's malloc.h; the numbers are part of its binary interface
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tell glibc's malloc to reuse freed memory instead of returning it; True if it listened.

    Call it once, before training; the setting lasts as long as the process. Whoever has set
    MALLOC_MMAP_MAX_, MALLOC_TRIM_THRESHOLD_ or GLIBC_TUNABLES keeps what was set.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    chosen = ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
    if any(name in os.environ for name in chosen):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    # mallopt answers 1 for yes
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, LARGEST_INT))
