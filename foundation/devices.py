"""设备与精度：在哪里算、用什么数算、还剩多少内存。"""

from __future__ import annotations

import os
import random
from contextlib import AbstractContextManager, nullcontext

import torch

from foundation.checks import check_choice, check_int

__all__ = [
    "PRECISIONS",
    "autocast_context",
    "available_memory_bytes",
    "multiplies_bf16",
    "pick_device",
    "resolve_precision",
    "seed_everything",
]

PRECISIONS = ("auto", "fp32", "bf16", "fp16")


def pick_device(name: str = "auto") -> torch.device:
    """Turn "auto", "cpu", "cuda", "cuda:1" or "mps" into a device that is really there."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device must be auto, cpu, cuda, cuda:N or mps; got {name!r}") from None
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise ValueError(f"device {name!r} is not there: this machine has {count} CUDA devices")
    elif device.type == "mps":
        if not torch.backends.mps.is_available():
            raise ValueError("device 'mps' is not there: it needs a Mac with Apple silicon")
    elif device.type != "cpu":
        raise ValueError(f"device must be auto, cpu, cuda, cuda:N or mps; got {name!r}")
    return device


def resolve_precision(name: str, device: torch.device) -> str:
    """Turn "auto" into what is safe and fast on `device`; refuse what cannot work there.

    auto: bf16 where the device multiplies it natively (CUDA from Ampere on, CPUs with AVX512-BF16
    or AMX: several times faster there), fp32 elsewhere.
    """
    check_choice("precision", name, PRECISIONS)
    if name == "auto":
        return "bf16" if multiplies_bf16(device) else "fp32"
    if name == "fp16" and device.type != "cuda":
        raise ValueError(
            f"precision 'fp16' needs a CUDA device, got {device.type}; use bf16 or fp32"
        )
    return name


def multiplies_bf16(device: torch.device) -> bool:
    """Tell whether `device` has instructions for bf16 products, not an emulation of them."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        # torch has no public question for this; where the private one is missing: no
        known = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
        return bool(known is not None and known())
    return False


def autocast_context(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Return the autocast context of a resolved precision; for fp32 one that does nothing."""
    if precision == "fp32":
        return nullcontext()
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return torch.autocast(device.type, dtype=dtype)


def seed_everything(seed: int) -> None:
    """Seed Python's and torch's generators (all devices)."""
    check_int("seed", seed, 0, 2**63 - 1)
    random.seed(seed)
    torch.manual_seed(seed)


def available_memory_bytes(device: torch.device | None = None) -> int | None:
    """Return the free memory of `device` in bytes, or None where nobody can tell."""
    if device is not None and device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    if device is not None and device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    return _available_host_memory()


def _available_host_memory() -> int | None:
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    if os.name == "nt":
        return _available_windows_memory()
    try:  # macOS tells the total only; half of it is a cautious guess of what is free
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, ValueError, OSError):
        return None


def _available_windows_memory() -> int | None:
    import ctypes

    class MemoryStatus(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ulong), ("load", ctypes.c_ulong)] + [
            (name, ctypes.c_ulonglong)
            for name in (
                "total",
                "available",
                "t_page",
                "a_page",
                "t_virtual",
                "a_virtual",
                "a_ext",
            )
        ]

    status = MemoryStatus()
    status.length = ctypes.sizeof(MemoryStatus)
    kernel = getattr(ctypes, "windll").kernel32  # noqa: B009 - absent outside Windows
    return int(status.available) if kernel.GlobalMemoryStatusEx(ctypes.byref(status)) else None
