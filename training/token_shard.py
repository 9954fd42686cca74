r"""几十 GB 的词元放在磁盘上，怎样像一个数组那样随便取，又不会读到坏数据？

用内存映射（memory map）：文件看起来就是一个 numpy 数组，操作系统在用到哪一页时才读哪一页，
内存不够时又自己丢掉。词元按固定宽度首尾相接，第 p 个词元就在第 p·w 字节，不必查任何索引：

$$\text{offset}(p) = pw, \quad \text{n\_tokens} = \text{file size} / w, \quad w \in \{2, 4\}$$

    train.bin   48 00 │ 65 00 │ 07 00 │ 00 08 │ …       小端序 uint16（w = 2）
    tokens         72     101       7    2048            一个词元占两个字节

代价是：映射之后文件若被别人截短，读那一页会收到 SIGBUS，进程当场死掉，没有异常可接。
所以每取一批之前先问一次文件还有多长（check_intact），只是一次系统调用。

为什么不整个读进内存：语料常比内存大；几个训练进程读同一个文件时，映射的页还是共用的。
为什么不用 read 一段段取：打乱的窗口东一处西一处，每个窗口一次 seek 加一次 read，还要自己管缓冲；
映射之后就是数组索引，一次取完一批。

    进程的地址空间   │…│ 页 0 │ 页 1 │ 页 2 │ 页 3 │…│      只有碰过的页才占内存
                         │             │
    文件 train.bin   │ 页 0 │ 页 1 │ 页 2 │ 页 3 │          第一次碰到时，由操作系统读进来

打开时查什么：文件夹还是文件、空不空、字节数是不是 w 的倍数、manifest 里的大小与 SHA-256、
编号有没有超出词表。裸 .bin 文件（例如 nanoGPT 的）没有 manifest，就逐块看最大的编号。

    path.is_dir、字节数        打开之前，看一眼就知道
    manifest 的大小、SHA-256   由 foundation.files 核对；位翻转也瞒不过
    最大的编号                 写的时候已记下；超出词表的编号会让嵌入层越界

常见疑问：
    为什么存 uint16 而不是 int64？  文件只有四分之一大，读得也快；取出一批时才转换。
    词表超过 65536 呢？             自动用 uint32（见 shards.py）；宽度写在 manifest 里。
    小端序在大端机器上？            dtype 写明了 "<"，numpy 会换序，只是慢一点。
    训练途中能重写数据目录吗？      Linux、macOS 上可以，旧的映射仍指着旧文件；Windows 会拒绝改名。

用法：
    with TokenShard.open("data", "val") as shard: …             我们写的目录
    shard = TokenShard.open_file("train.bin", vocab_size=50257)  别处来的裸文件
    batches = TokenBatches(shard, 32, 256, seed=0)               直接当作词元用
    shard.close()                                                用完放开

试一试：
    把 train.bin 的一个字节改掉再打开：SHA-256 立刻认出来；加上 verify=False，就认不出了；
    把 train.bin 截短一半再打开：不论 verify 与否，都会说出两个大小。

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

# manifest 里的种类：凭它区分词元分片与模型目录、检查点。
KIND = "token-shards"
# 文件名就是「split.bin」。
SPLITS = ("train", "val")
# 名字写进 manifest；磁盘上一律小端序，换一台机器也读得对。
TOKEN_DTYPES = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
# 逐块扫描时每块的词元数：块太小则循环太多，太大则白占内存。
BLOCK_TOKENS = 1 << 22


class TokenShard:
    """一个分片：只读、内存映射、打开时检查过。可用 with，或自己 close()。

    用法：with TokenShard.open("data", "train") as shard: print(shard.tokens[:10])

    形状：tokens (n_tokens,) uint16 或 uint32；document_starts (n_documents,) int64，升序，从 0 开始
    """

    def __init__(
        self, path: Path, dtype: np.dtype, vocab_size: int, document_starts: np.ndarray
    ) -> None:
        """一般不直接用；请用 open（有 manifest）或 open_file（裸文件）。"""
        self.path, self.vocab_size = path, vocab_size
        self.document_starts = document_starts  # (n_documents,)
        # 以下三样由 open 从 manifest 填入；裸 .bin 文件没有
        self.n_bytes: int | None = None  # 原文的 UTF-8 字节数
        self.tokenizer_fingerprint: str | None = None  # 与模型的分词器核对用
        self.fingerprint: str | None = None  # 内容的 SHA-256；续训时核对语料没有换
        self._size = _checked_size(path, dtype)
        # 映射自己另存一份文件描述符，所以文件可以马上关闭
        try:
            with open(path, "rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        # 没有权限、网络盘断开：都变成一句说出文件名的话
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None
        # frombuffer 不复制：数组就是映射本身，而且只读，写它会报错
        self._tokens: np.ndarray | None = np.frombuffer(self._map, dtype=dtype)
        self.n_tokens = len(self._tokens)  # 关闭之后仍然知道

    @classmethod
    def open(
        cls, directory: Path | str, split: str = "train", *, verify: bool = True
    ) -> TokenShard:
        """打开 write_shards 写的目录里的一个分片。

        verify=False 省去逐文件的 SHA-256：分片很大、又刚刚核对过时用。
        错误：文件缺失、大小或内容不符、编号超出词表时抛 ValueError，并说出是哪个文件
        """
        check_choice("split", split, SPLITS)
        directory = Path(directory)
        # ① 先核对文件，再相信 manifest 里的数字
        manifest = (verify_manifest if verify else read_manifest)(directory, kind=KIND)
        path = directory / f"{split}.bin"
        # manifest 本身没有校验和；有人手改坏了它，也要说成一句话，而不是 KeyError
        try:
            facts, listed = manifest["splits"][split], manifest["files"][path.name]
            n_tokens, max_id = int(facts["n_tokens"]), int(facts["max_id"])
            dtype, vocab_size = TOKEN_DTYPES[manifest["dtype"]], int(manifest["vocab_size"])
            n_bytes, tokenizer = int(facts["n_bytes"]), str(manifest["tokenizer"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{directory}/manifest.json is damaged: {error!r}") from None
        # ② 大小：即使不算 SHA-256，也认得出截短与写了一半
        expected = n_tokens * dtype.itemsize
        size = _checked_size(path, dtype)
        if size != expected:
            raise ValueError(f"{path} is damaged: {size} bytes, but the manifest says {expected}")
        # ③ 编号：写的时候已经逐个看过，内容又由 SHA-256 担保，只需比一个数
        if max_id >= vocab_size:
            raise ValueError(f"{path} holds token id {max_id}, but its vocabulary is {vocab_size}")
        # ④ 文档起点
        starts = _read_starts(directory / f"{split}.documents.npy")
        shard = cls(path, dtype, vocab_size, starts)
        shard.n_bytes, shard.tokenizer_fingerprint = n_bytes, tokenizer
        shard.fingerprint = str(listed["sha256"])
        return shard

    @classmethod
    def open_file(cls, path: Path | str, *, vocab_size: int, dtype: str = "uint16") -> TokenShard:
        """打开一个没有 manifest 的裸分片（例如 nanoGPT 的 train.bin），编号逐块检查一遍。

        宽度读错是最常见的毛病：把 uint32 当成 uint16，几乎每两个编号里就有一个是 0。
        错误：空的、字节数不是整数个词元、编号超出词表（说出第一个在哪里）时抛 ValueError
        """
        check_int("vocab_size", vocab_size, 1)
        check_choice("dtype", dtype, TOKEN_DTYPES)
        # 不知道文档从哪里开始，只好当作一整篇
        shard = cls(Path(path), TOKEN_DTYPES[dtype], vocab_size, np.zeros(1, dtype=np.int64))
        # 裸文件没有 manifest 担保，每个编号都要看到；逐块看，所以多大的文件都行
        tokens = shard.tokens
        for first in range(0, shard.n_tokens, BLOCK_TOKENS):
            # 先只比一个最大值；真有问题，才去找它在哪里
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
        """全部词元：(n_tokens,)，只读；切片时才真正读盘。"""
        # 关闭之后再用，给一句话；否则读到的是已经收回的内存
        if self._tokens is None:
            raise ValueError(f"{self.path} is closed; open it again to read on")
        return self._tokens

    @property
    def bytes_per_token(self) -> float | None:
        """一个词元平均合多少 UTF-8 字节（分隔符也算词元）；裸 .bin 文件不知道。

        公式：比特每字节 = 每词元损失 / ln 2 / bytes_per_token
        """
        return None if self.n_bytes is None else self.n_bytes / self.n_tokens

    def check_intact(self) -> None:
        """文件变短则抛 ValueError；读映射之外的一页，操作系统会用 SIGBUS 直接杀死进程。"""
        # 问的是打开着的那个文件，不是那个名字：别人换上同名的新文件，与我们无关
        size = self._map.size() if self._tokens is not None else self._size
        # 变长无妨：我们只映射了原来的那一段
        if size < self._size:
            raise ValueError(
                f"{self.path} was truncated while in use: {size} bytes, it had {self._size}"
            )

    def close(self) -> None:
        """放开文件。Windows 上，映射着的文件删不掉也改不了名。"""
        self._tokens = None  # 数组不放手，映射就关不掉
        try:
            self._map.close()
        except BufferError:
            # 别处还握着切片；它们消失时映射自然关闭
            pass

    # with 语句：离开时 close()，出错也不例外
    def __enter__(self) -> TokenShard:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return self.n_tokens


def _read_starts(path: Path) -> np.ndarray:
    """读文档的起点：一维的整数数组。

    只认 .npy 的格式，且 allow_pickle=False：np.load 见到 zip 或 pickle 会换一种读法，
    数据文件却绝不能执行代码；它的报错又劝人「放心就打开 allow_pickle」，所以换成自己的话
    错误：不是这样的文件 → ValueError，写明是哪个
    """
    try:
        with open(path, "rb") as file:
            starts = np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, EOFError, SyntaxError) as error:
        if "pickle" in str(error):
            error = ValueError("it holds Python objects, which could run code")
        raise ValueError(f"{path} is not an array of integers: {error}") from None
    if starts.ndim != 1 or starts.dtype.kind not in "iu":
        raise ValueError(f"{path} is not an array of integers: {starts.ndim}-d {starts.dtype}")
    return starts


def _checked_size(path: Path, dtype: np.dtype) -> int:
    """文件的字节数；空的、不是整数个词元的都不行。

    空文件不能映射（操作系统会报一句难懂的错），所以在那之前就说清楚。
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder, a token file is needed")
    # 只差一个文件也要说出它的名字：用户多半给错了目录
    if not path.exists():
        raise ValueError(f"{path} does not exist")
    size = path.stat().st_size
    if size == 0:
        raise ValueError(f"{path} is empty: 0 bytes, at least one token is needed")
    # 奇数个字节的 uint16：多半是下载中断，或写到一半
    if size % dtype.itemsize:
        raise ValueError(
            f"{path} has {size} bytes, not a multiple of {dtype.itemsize}: {dtype.name} tokens "
            f"take {dtype.itemsize} bytes each; the file is truncated or of another dtype"
        )
    return size


def demo() -> None:
    """写四个词元，看字节；再看各种坏文件得到什么。

    真正的分片由 shards.py 写；这里直接写字节，看清磁盘上到底是什么。
    """
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "train.bin")
        tokens = np.array([72, 101, 7, 2048], dtype="<u2")
        path.write_bytes(tokens.tobytes())
        # 72 = 0x0048，小端序先写低位：48 00
        print(f"① 词元 {tokens.tolist()} → 字节 {path.read_bytes().hex(' ', 2)}")
        with TokenShard.open_file(path, vocab_size=4096) as shard:
            print(f"   映射回来：第 3 个词元 = {shard.tokens[3]}，共 {len(shard)} 个")
            # 写进去的与映射出来的，一个不差
            assert shard.tokens.tolist() == tokens.tolist()
            # 模拟别的程序在训练途中改写了文件
            print("② 使用中被截短：取下一批之前就发现，而不是被操作系统杀死")
            try:
                path.write_bytes(tokens[:1].tobytes())
                shard.check_intact()
            except (ValueError, OSError) as error:  # Windows 根本不许截短映射着的文件
                print(f"   {str(error).replace(name, '…')}")
        # 空的、奇数个字节的、编号超出词表的
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
