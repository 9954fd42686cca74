"""给这台机器做一次体检：装得全吗，算得对吗，有多快，能训练什么。

`examine` yields findings one by one, as they are known, so that the reader sees progress. Only
what is needed for the next check is imported: a machine without torch gets its answer too.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from foundation.environment import (
    CompileProbe,
    Finding,
    check_disk,
    check_memory,
    check_optional_packages,
    check_packages,
    check_python,
    human_bytes,
    usable_cores,
)

if TYPE_CHECKING:
    import torch

    from evaluation.throughput import Workload

__all__ = ["examine", "minutes_text"]

LONG_WAIT = 30 * 60  # seconds; a first run longer than this deserves a warning


def examine(
    folder: Path, workloads: Sequence[Workload] = (), *, compile_limit: float | None = 30.0
) -> Iterator[Finding]:
    """Yield every finding; `compile_limit` None skips the check of torch.compile."""
    yield check_python()
    packages = list(check_packages())
    yield from packages
    yield check_optional_packages()
    yield check_disk(folder)
    if any(finding.status == "fail" for finding in packages):
        return
    from foundation.devices import available_memory_bytes, pick_device
    from foundation.numerics import present_devices

    yield check_memory(available_memory_bytes())
    yield check_threads()
    best = pick_device("auto")
    probe = None if compile_limit is None else CompileProbe(best.type, compile_limit)
    try:
        for device in present_devices():
            yield describe_device(device)
            yield from check_device_numerics(device)
        if probe is not None:
            yield probe.finding()  # before any timing: it keeps the cores busy
        yield compare_precisions(best)
        for workload in workloads:
            yield estimate_training(workload, best)
    finally:
        if probe is not None:
            probe.close()


def check_threads() -> Finding:
    """Does torch use the cores that it may use?"""
    import torch

    threads, cores = torch.get_num_threads(), usable_cores()
    detail = f"{threads} for {cores} usable cores"
    if threads > cores:
        return Finding(
            "warn", "threads", detail, f"more threads than cores: OMP_NUM_THREADS={cores}"
        )
    if threads < cores // 2:
        return Finding(
            "warn", "threads", detail, "is OMP_NUM_THREADS set? more threads train faster"
        )
    return Finding("ok", "threads", detail)


def describe_device(device: torch.device) -> Finding:
    """Name a device and its free memory."""
    import torch

    from foundation.devices import available_memory_bytes

    name = platform.processor() or platform.machine()
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        name = f"{torch.cuda.get_device_name(device)}, capability {major}.{minor}"
    elif device.type == "mps":
        name = "Apple GPU"
    else:
        name += f", {torch.backends.cpu.get_cpu_capability()}"
    free = available_memory_bytes(device)
    memory = "" if free is None else f", {human_bytes(free)} free"
    return Finding("ok", f"device {device}", name + memory)


def check_device_numerics(device: torch.device) -> Iterator[Finding]:
    """Compare what the device computes with float64; red names the device that is wrong."""
    from foundation.numerics import check_numerics

    for result in check_numerics(device):
        if result.problem:
            # Without bf16 a device is poorer, not wrong; everything else must work.
            status = "warn" if result.name.endswith("bf16") else "fail"
            yield Finding(status, result.name, f"{device} cannot: {result.problem}")
        elif result.ok:
            detail = f"{device} right: error {result.error:.1e}, bound {result.bound:.1e}"
            yield Finding("ok", result.name, detail)
        else:
            detail = (
                f"{device} COMPUTES WRONGLY: error {result.error:.1e}, bound {result.bound:.1e}"
            )
            advice = "do not train on it: update torch and the driver, or pick another --device"
            yield Finding("fail", result.name, detail, advice)


def compare_precisions(device: torch.device) -> Finding:
    """Measure whether bf16 is faster here, and say what --precision auto means."""
    import torch

    from foundation.devices import resolve_precision
    from foundation.numerics import first_line, matmul_flops_per_second

    automatic = resolve_precision("auto", device)
    single = matmul_flops_per_second(device, torch.float32)
    detail = f"{device} fp32 {single / 1e9:,.0f} GFLOP/s"
    try:
        half = matmul_flops_per_second(device, torch.bfloat16)
        detail += f", bf16 {half / 1e9:,.0f} ({half / single:.1f} times as fast)"
    except (RuntimeError, TypeError) as error:
        detail += f", bf16 not available ({first_line(error)})"
    return Finding("ok", "precision", f"{detail}; auto uses {automatic}")


def estimate_training(workload: Workload, device: torch.device) -> Finding:
    """Train a few steps and say how many minutes the whole run takes here."""
    from evaluation.throughput import measure_training_speed

    try:
        speed = measure_training_speed(workload, device)
    except RuntimeError as error:  # out of memory, on a CPU too
        cause = str(error).strip().split("\n", 1)[0][:100]
        return Finding("warn", workload.name, f"cannot be trained on {device}: {cause}")
    seconds = workload.n_tokens / speed
    detail = (
        f"about {minutes_text(seconds)} on {device}: "
        f"{workload.n_tokens / 1e6:.1f} M tokens at {speed:,.0f} tokens/s"
    )
    return Finding("warn" if seconds > LONG_WAIT else "ok", workload.name, detail)


def minutes_text(seconds: float) -> str:
    """Write a duration as people say it: 40 s, 5.2 min, 3.1 h, 2.5 days."""
    for limit, size, unit in ((90, 1, "s"), (5400, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.{0 if size == 1 else 1}f} {unit}"
    return f"{seconds / 86400:.1f} days"
