r"""几十 GB 的词元放在磁盘上，怎样像一个数组那样随便取，又不会读到坏数据？

用内存映射（memory map）：文件看起来就是一个 numpy 数组，操作系统在用到哪一页时才读哪一页，
内存不够时又自己丢掉。词元按固定宽度首尾相接，第 p 个词元就在第 p·w 字节，不必查任何索引：

$$\text{offset}(p) = pw, \quad \text{n\_tokens} = \text{file size} / w, \quad w \in \{2, 4\}$$

    train.bin   48 00 │ 65 00 │ 07 00 │ 00 08 │ …       小端序 uint16（w = 2）
    tokens         72     101       7    2048            一个词元占两个字节

代价是：映射之后文件若被别人截短，读那一页会收到 SIGBUS，进程当场死掉，没有异常可接。
所以每取一批之前先问一次文件还有多长（check_intact），一次系统调用，不到一微秒。

打开时查什么：文件夹还是文件、空不空、字节数是不是 w 的倍数、manifest 里的大小与 SHA-256、
编号有没有超出词表。裸 .bin 文件（例如 nanoGPT 的）没有 manifest，就逐块看最大的编号。

论文：内存映射的语料 — Shoeybi et al., *Megatron-LM*, arXiv:1909.08053。

改哪里：写分片、划分训练与验证 → shards.py；换宽度 → TOKEN_DTYPES。
"""

from __future__ import annotations

import mmap
import tempfile
from pathlib import Path

import numpy as np

from foundation.checks import check_choice, check_int
from foundation.demonstration import run_demo
from foundation.files import read_manifest, verify_manifest

__all__ = ["KIND", "SPLITS", "TOKEN_DTYPES", "TokenShard"]

KIND = "token-shards"
SPLITS = ("train", "val")
# 名字写进 manifest；磁盘上一律小端序，换一台机器也读得对。
TOKEN_DTYPES = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
# 逐块扫描时每块的词元数：再大就白占内存。
BLOCK_TOKENS = 1 << 22


class TokenShard:
    """一个分片：只读、内存映射、打开时检查过。可用 with，或自己 close()。

    形状：tokens (n_tokens,) uint16 或 uint32；document_starts (n_documents,) int64，升序，从 0 开始
    """

    def __init__(
        self, path: Path, dtype: np.dtype, vocab_size: int, document_starts: np.ndarray
    ) -> None:
        self.path, self.vocab_size = path, vocab_size
        self.document_starts = document_starts
        # 这些由 open 从 manifest 填入；裸 .bin 文件没有。
        self.n_bytes: int | None = None
        self.tokenizer_fingerprint: str | None = None
        self.fingerprint: str | None = None
        self._size = _checked_size(path, dtype)
        try:
            with open(path, "rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None
        self._tokens: np.ndarray | None = np.frombuffer(self._map, dtype=dtype)
        self.n_tokens = len(self._tokens)

    @classmethod
    def open(
        cls, directory: Path | str, split: str = "train", *, verify: bool = True
    ) -> TokenShard:
        """打开 write_shards 写的目录里的一个分片。verify=False 省去逐文件的 SHA-256。

        错误：文件缺失、大小或内容不符、编号超出词表时抛 ValueError，并说出是哪个文件
        """
        check_choice("split", split, SPLITS)
        directory = Path(directory)
        manifest = (verify_manifest if verify else read_manifest)(directory, kind=KIND)
        path = directory / f"{split}.bin"
        try:
            facts, listed = manifest["splits"][split], manifest["files"][path.name]
            n_tokens, max_id = int(facts["n_tokens"]), int(facts["max_id"])
            dtype, vocab_size = TOKEN_DTYPES[manifest["dtype"]], int(manifest["vocab_size"])
            n_bytes, tokenizer = int(facts["n_bytes"]), str(manifest["tokenizer"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{directory}/manifest.json is damaged: {error!r}") from None
        expected = n_tokens * dtype.itemsize
        size = _checked_size(path, dtype)
        if size != expected:
            raise ValueError(f"{path} is damaged: {size} bytes, but the manifest says {expected}")
        # 写的时候已经逐个看过，内容又由 SHA-256 担保，只需比一个数。
        if max_id >= vocab_size:
            raise ValueError(f"{path} holds token id {max_id}, but its vocabulary is {vocab_size}")
        starts = np.load(directory / f"{split}.documents.npy", allow_pickle=False)
        shard = cls(path, dtype, vocab_size, starts)
        shard.n_bytes, shard.tokenizer_fingerprint = n_bytes, tokenizer
        shard.fingerprint = str(listed["sha256"])
        return shard

    @classmethod
    def open_file(cls, path: Path | str, *, vocab_size: int, dtype: str = "uint16") -> TokenShard:
        """打开一个没有 manifest 的裸分片（例如 nanoGPT 的 train.bin），编号逐块检查一遍。"""
        check_int("vocab_size", vocab_size, 1)
        check_choice("dtype", dtype, TOKEN_DTYPES)
        # 不知道文档从哪里开始，只好当作一整篇。
        shard = cls(Path(path), TOKEN_DTYPES[dtype], vocab_size, np.zeros(1, dtype=np.int64))
        tokens = shard.tokens
        for first in range(0, shard.n_tokens, BLOCK_TOKENS):
            block = tokens[first : first + BLOCK_TOKENS]
            if block.max() >= vocab_size:
                place = int(np.argmax(block >= vocab_size))
                raise ValueError(
                    f"{path} holds token id {block[place]} at position {first + place}, but "
                    f"vocab_size is {vocab_size} (ids 0..{vocab_size - 1}); wrong "
                    "tokenizer or dtype?"
                )
        return shard

    @property
    def tokens(self) -> np.ndarray:
        """全部词元；切片时才真正读盘。"""
        if self._tokens is None:
            raise ValueError(f"{self.path} is closed")
        return self._tokens

    @property
    def bytes_per_token(self) -> float | None:
        """一个词元平均合多少 UTF-8 字节；裸 .bin 文件不知道。"""
        return None if self.n_bytes is None else self.n_bytes / self.n_tokens

    def check_intact(self) -> None:
        """文件变短则抛 ValueError；读映射之外的一页，操作系统会用 SIGBUS 直接杀死进程。"""
        size = self._map.size()
        if size < self._size:
            raise ValueError(
                f"{self.path} was truncated while in use: {size} bytes, it had {self._size}"
            )

    def close(self) -> None:
        """放开文件。Windows 上，映射着的文件删不掉也改不了名。"""
        self._tokens = None
        try:
            self._map.close()
        except BufferError:
            # 别处还握着切片；它们消失时映射自然关闭。
            pass

    def __enter__(self) -> TokenShard:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return self.n_tokens


def _checked_size(path: Path, dtype: np.dtype) -> int:
    """文件的字节数；空的、不是整数个词元的都不行。"""
    if path.is_dir():
        raise ValueError(f"{path} is a folder, a token file is needed")
    if not path.exists():
        raise ValueError(f"{path} does not exist")
    size = path.stat().st_size
    if size == 0:
        raise ValueError(f"{path} is empty: 0 bytes, at least one token is needed")
    if size % dtype.itemsize:
        raise ValueError(
            f"{path} has {size} bytes, not a multiple of {dtype.itemsize}: {dtype.name} tokens "
            f"take {dtype.itemsize} bytes each; the file is truncated or of another dtype"
        )
    return size


def demo() -> None:
    """写四个词元，看字节；再看各种坏文件得到什么。"""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "train.bin")
        tokens = np.array([72, 101, 7, 2048], dtype="<u2")
        path.write_bytes(tokens.tobytes())
        print(f"① 词元 {tokens.tolist()} → 字节 {path.read_bytes().hex(' ', 2)}")
        with TokenShard.open_file(path, vocab_size=4096) as shard:
            print(f"   映射回来：第 3 个词元 = {shard.tokens[3]}，共 {len(shard)} 个")
            assert shard.tokens.tolist() == tokens.tolist()
            print("② 使用中被截短：取下一批之前就发现，而不是被操作系统杀死")
            try:
                path.write_bytes(tokens[:1].tobytes())
                shard.check_intact()
            except (ValueError, OSError) as error:  # Windows 根本不许截短映射着的文件
                print(f"   {str(error).replace(name, '…')}")
        print("③ 打开时就拒绝的文件")
        bad = {
            "empty.bin": b"",
            "odd.bin": bytes(7),
            "foreign.bin": np.array([5, 300], "<u2").tobytes(),
        }
        for file, content in bad.items():
            Path(name, file).write_bytes(content)
            try:
                TokenShard.open_file(Path(name, file), vocab_size=256)
            except ValueError as error:
                print(f"   {str(error).replace(name, '…')}")
            else:
                raise AssertionError(f"{file} should have been refused")


if __name__ == "__main__":
    run_demo(demo)
