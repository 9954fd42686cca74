"""权重摆在内存的哪里，也影响读得多快：挨着摆，用大页（huge page）。

Writing one token reads every weight once, from the first to the last. The processor finds memory
by pages of 4 KB; at each edge its prefetcher stops until the next address is looked up, and
124M float32 weights have 121,524 such edges. Of large pages, 2 MB each, they fill 238. Read in the
same way, 16-bit weights come 30 to 50 % faster (benchmarks/decode_speed.py).

Tensors allocated one by one lie here and there and fill no large page. A WeightBlock is one piece
of memory, aligned to 2 MB, for which the system is asked for large pages before it is touched.
Elsewhere than on Linux, or where large pages are off, it is just a piece of memory.
"""

from __future__ import annotations

import ctypes
import sys

import torch
from torch import Tensor

__all__ = ["ALIGNMENT", "WeightBlock", "padded"]

PAGE = 2 << 20
ALIGNMENT = 64  # bytes: every tensor begins a cache line
MADV_HUGEPAGE = 14  # Linux, <sys/mman.h>


class WeightBlock:
    """One piece of memory that tensors are copied into, one after the other.

    It lives as long as any of them. A tensor that does not fit is a ValueError with both numbers.
    """

    def __init__(self, n_bytes: int) -> None:
        # a kernel reads whole vectors, so up to a line past the end of the last tensor
        self.capacity = n_bytes + ALIGNMENT
        self.memory = torch.empty(self.capacity + PAGE, dtype=torch.uint8)
        address = self.memory.data_ptr()
        self.start = -address % PAGE
        self.used = 0
        # memory that was never written is not there yet; now is the time to say what it should be
        self.large = ask_for_large_pages(address + self.start, self.capacity)

    def place(self, tensor: Tensor) -> Tensor:
        """Copy a tensor in; the copy has its values, shape and type."""
        n_bytes = tensor.numel() * tensor.element_size()
        begin = self.start + self.used
        if self.used + n_bytes > self.capacity:
            raise ValueError(
                f"the block holds {self.capacity:,} bytes; {self.used:,} are used and "
                f"{n_bytes:,} more do not fit"
            )
        placed = self.memory[begin : begin + n_bytes].view(tensor.dtype).view(tensor.shape)
        placed.copy_(tensor.detach())
        self.used += padded(n_bytes)
        return placed

    def __contains__(self, tensor: Tensor) -> bool:
        offset = tensor.data_ptr() - self.memory.data_ptr()
        return 0 <= offset < self.memory.nbytes


def padded(n_bytes: int) -> int:
    """Up to whole cache lines."""
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT


def ask_for_large_pages(address: int, n_bytes: int) -> bool:
    """Ask the system; did it agree? It need not, and nothing is lost then."""
    if not sys.platform.startswith("linux") or n_bytes < PAGE:
        return False
    try:
        madvise = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return False
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return bool(madvise(address, n_bytes // PAGE * PAGE, MADV_HUGEPAGE) == 0)
