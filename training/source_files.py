r"""怎样打开一个语料文件，使压缩与否、读到哪里，都与读它的人无关？

读的人（documents.py）只要一个能读字节的东西；压缩、计数、报错都在这里，像套管子一样一层套一层：

    磁盘 ──▶ CountedFile ──▶ BufferedReader ──▶ (GzipFile) ──▶ 读的人
             数磁盘上的字节    攒成大块再要        .gz 才有这一层

数的是最外面那一层的字节，也就是磁盘上的，所以

$$\text{进度} = \frac{\sum \text{on\_read 的参数}}{\text{文件在磁盘上的大小}}$$

压缩的文件也准：解压后有多大，要读完才知道，而磁盘上的大小一问就有。

为什么不整个解压再读：一个 gzip 文件可以压缩上千倍（压缩炸弹，decompression bomb）；
一块一块地解压，文件再怪，内存里也只有一块。

    a.jsonl.gz   磁盘 1 MB ──▶ 解压 10 MB ──▶ 每次 64 KB ──▶ 一行一篇

四层各管一件事，所以换掉哪一层，别的都不用动：

    层              管什么                      不管什么
    CountedFile     从磁盘读，报告读了多少      读的人一次要几个字节
    BufferedReader  攒成 64 KB 一次再去要       内容是什么
    GzipFile        解压，发现坏了就抛错        文本、编码
    plainly_said    把异常说成一句带文件名的话  怎样读

常见疑问：
    为什么只认 gzip？      标准库就有，公开的语料大多是它；zstd 先转成 gzip 或 parquet。
    读到一半断开的网络盘？  OSError 变成一句说出文件名的 ValueError，不会当成文件到此为止。
    截短的 .gz？           GzipFile 发现没有结尾就抛 EOFError，也变成一句话。

规范：GZIP file format — RFC 1952。

改哪里：再认一种压缩 → open_source 里多套一层，并在 plainly_said 里加上它的异常。
"""

from __future__ import annotations

import gzip
import io
import tempfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from foundation.demonstration import run_demo

__all__ = ["COMPRESSED", "open_source", "plainly_said"]

# 以它结尾的先解压；它前面的那个后缀才说明内容。
COMPRESSED = ".gz"
# 缓冲的大小：行再短，也不会一行一次系统调用；要得比它多时，直接读，不经过它。
BUFFER_BYTES = 1 << 16

Item = TypeVar("Item")


class CountedFile(io.FileIO):
    """一个文件，每读一块就报告一次读了多少字节。"""

    on_read: Callable[[int], None] | None = None

    # 缓冲层只通过 readinto 来要，所以数这一处就全了
    def readinto(self, buffer: Any) -> int | None:
        """读进 buffer，报告读了多少。"""
        n_bytes = super().readinto(buffer)
        if n_bytes and self.on_read is not None:
            self.on_read(n_bytes)
        return n_bytes


def open_source(path: Path, on_read: Callable[[int], None] | None = None) -> BinaryIO:
    """打开，以字节读；.gz 的读出来是解压后的。

    错误：没有、没有权限、路径太长，都变成一句说出文件名的 ValueError
    以字节打开而不以文本打开：编码错时要报字节的偏移，文本模式说不出来。
    """
    try:
        raw = CountedFile(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None
    # 数在最底下：上面几层会多要、会缓冲，只有这里等于磁盘上的字节
    raw.on_read = on_read
    file = io.BufferedReader(raw, BUFFER_BYTES)
    if path.suffix.lower() != COMPRESSED:
        return file
    # 读到末尾它会核对 CRC 与长度，坏了就抛错
    # GzipFile 只关自己、不关别人给它的文件；给它 myfileobj，它才会一起关
    unpacked = gzip.GzipFile(fileobj=file, mode="rb")
    unpacked.myfileobj = file  # type: ignore[assignment]
    return cast(BinaryIO, unpacked)


def plainly_said(path: Path, items: Iterator[Item]) -> Iterator[Item]:
    """照样产生 items；读到一半出的错（坏扇区、网络盘断开、截短的压缩文件）变成一句话。

    只翻译读文件的错；编码、JSON 的错本来就是说清楚了的 ValueError，原样通过
    """
    # 生成器里的异常只来自 items；调用者处理一篇时的异常不会经过这里
    try:
        yield from items
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is not a whole gzip file: {error}") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None


def demo() -> None:
    """同样的内容，压缩与不压缩；进度数的是磁盘上的字节；截短的压缩文件。"""
    # 重复的内容压缩得很小，差别才看得清
    lines = b'{"text": "the moon, the moon!"}\n' * 20_000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "a.jsonl").write_bytes(lines)
        (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines))
        # a.jsonl 与 a.jsonl.gz：名字不同，内容相同
        print("① 同样的内容，读出来一样；on_read 数的是磁盘上的字节")
        for path in sorted(folder.iterdir()):
            counted: list[int] = []
            # 一块一块地读到末尾，与 documents.py 的读法一样
            with open_source(path, counted.append) as file:
                content = b"".join(iter(partial(file.read, 1 << 20), b""))
            size = path.stat().st_size
            print(
                f"   {path.name:<11} 磁盘 {size:>7,}，读出 {len(content):,}，报告 {sum(counted):,}"
            )
            assert content == lines
            # 压缩的文件，缓冲层会多问一次末尾，但不会多数一个字节
            assert sum(counted) == size
        # 下载中断最常见的样子
        print("② 截短一半的压缩文件")
        path = folder / "a.jsonl.gz"
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        try:
            for _ in plainly_said(path, iter(open_source(path))):
                pass
        except ValueError as error:
            print(f"   {str(error).replace(name, '…')}")
        else:
            raise AssertionError("a truncated file must be refused")


if __name__ == "__main__":
    run_demo(demo)
