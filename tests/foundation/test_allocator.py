"""Freed memory stays with the process where glibc's malloc is; nowhere does it fail."""

import platform
import subprocess
import sys

import pytest

from foundation import allocator

COUNT_FAULTS = """
import resource, sys, torch
from foundation.allocator import keep_freed_memory
if "keep" in sys.argv:
    assert keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(15):  # until the heap has found its shape
    torch.ones(16_000_000)
before = faults()
for _ in range(10):
    torch.ones(16_000_000)
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_a_repeated_allocation_faults_its_pages_once(monkeypatch):
    for name in allocator.CHOSEN:
        monkeypatch.delenv(name, raising=False)
    counts = {
        word: int(subprocess.check_output([sys.executable, "-c", COUNT_FAULTS, word], text=True))
        for word in ("keep", "plain")
    }
    # 64 MB in pages of 4 KB, ten times over or once
    assert counts["plain"] > 100_000
    assert counts["keep"] < counts["plain"] / 5


def test_a_setting_of_the_user_is_kept(monkeypatch):
    monkeypatch.setenv("MALLOC_MMAP_MAX_", "7")
    monkeypatch.setattr(allocator.ctypes, "CDLL", None)  # would fail if it were asked
    assert allocator.keep_freed_memory() is False


def test_elsewhere_nothing_happens(monkeypatch):
    monkeypatch.setattr(allocator.platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(allocator.ctypes, "CDLL", None)
    assert allocator.keep_freed_memory() is False
    assert allocator.return_freed_memory() is False


RESIDENT = """
import sys, torch
from foundation.allocator import keep_freed_memory, return_freed_memory
assert keep_freed_memory()
if "return" in sys.argv:
    assert return_freed_memory()
blocks = [torch.ones(2_000_000) for _ in range(20)]
last = torch.ones(1000)  # keeps the top of the heap busy
del blocks
pages = int(open("/proc/self/statm").read().split()[1])
blocks = [torch.ones(1_990_000) for _ in range(20)]  # a little smaller: an aligned one fits
print(int(open("/proc/self/statm").read().split()[1]) - pages)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_returned_memory_is_no_longer_resident(monkeypatch):
    for name in allocator.CHOSEN:
        monkeypatch.delenv(name, raising=False)
    new_pages = {
        word: int(subprocess.check_output([sys.executable, "-c", RESIDENT, word], text=True))
        for word in ("keep", "return")
    }
    # 160 MB in pages of 4 KB: anew after they were returned, hardly any where they were kept
    assert new_pages["return"] > 35_000 > 5 * new_pages["keep"]


KEEP_SMALL_BLOCKS = """
import sys
from pathlib import Path
from foundation.allocator import trim_freed_memory
def resident():
    return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * 4096
blocks = [bytes(600) for _ in range(200_000)]
pin = bytes(600)  # on top of the heap: what lies below it is not given back by itself
del blocks
before = resident()
assert trim_freed_memory()
print(before - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc_trim is glibc's")
def test_freed_memory_is_given_back_at_once():
    given_back = subprocess.check_output([sys.executable, "-c", KEEP_SMALL_BLOCKS], text=True)
    assert int(given_back) > 80_000_000


def test_elsewhere_there_is_nothing_to_give_back(monkeypatch):
    monkeypatch.setattr(platform, "system", lambda: "Windows")
    assert not allocator.trim_freed_memory()
