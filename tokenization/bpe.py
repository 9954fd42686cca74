r"""BPE lesson (being written)."""

from __future__ import annotations

SPLIT_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]{1,24}"
    r"|\p{N}{1,2}"
    r"| ?[^\s\p{L}\p{M}\p{N}]{1,16}"
    r"|\s{1,16}(?!\S)"
    r"|\s{1,16}"
)
"""一段文本先按它切成小片，合并不越过片的边界。"""


def byte_symbols() -> list[str]:
    """返回 256 个字节各自的可见符号。"""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    symbols = {byte: chr(byte) for byte in visible}
    for byte in range(256):
        symbols.setdefault(byte, chr(256 + len(symbols) - len(visible)))
    return [symbols[byte] for byte in range(256)]
