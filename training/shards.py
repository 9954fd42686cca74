r"""文本只分词一次：怎样把语料存成「词元分片」（token shard），写到一半断电也不会留下半成品？

分词（tokenization）比读盘慢得多，所以只做一次，把编号按固定宽度接成一个长文件，
以后每次训练都用内存映射直接取（见 token_shard.py）。

    文档 ──攒成组──▶ encode_batch ──▶ 编号 + <|endoftext|> ──▶ all.bin ──划分──▶ train.bin
    （一次一组在内存里）                                        │                 val.bin
                                                                └ 每篇的起点、字节数、哈希

    数据目录
    ├── train.bin  val.bin                       词元，小端序（little-endian），宽 w 字节
    ├── train.documents.npy  val.documents.npy   每篇文档第一个词元的位置，int64
    ├── tokenizer.json                           没有它，编号就没有意义
    └── manifest.json                            最后写：各文件的大小与 SHA-256、词表、份额……

每个词元的宽度由词表大小 V 决定，够用就行——文件小一半，读得也快一倍：

$$w = \begin{cases} 2 & V \le 2^{16} \\ 4 & \text{otherwise} \end{cases}$$

为什么先写 all.bin 再划分：按文档的哈希划分要等看完全部文档才知道行不行（见 document_split.py）。
为什么在临时目录里写：全部写好、刷到磁盘、改名，三步之后才算数；中途出错，旧目录原样还在。
为什么不边训练边分词：那样每个词元在每一轮都要重新分词，打乱顺序也无从谈起。

内存：任何时候只有一组文档（GROUP_CHARS 个字符左右）的文本与编号，外加每篇文档 24 个字节。

比特每字节（bits per byte）让不同的分词器可以比较，为此记下一个词元平均合多少字节的原文：

$$\text{bpb} = \frac{\text{每词元损失（nat）}}{\ln 2 \cdot \text{n\_bytes} / \text{n\_tokens}}$$

一步一步看：词表 {e: 0, 春: 1, 眠: 2}（e 是分隔符），两篇文档「春眠」「春」：

    编号          1 2 e   1 e                     all.bin 的字节  0100 0200 0000 0100 0000
    文档起点      0       3                       documents.npy   [0, 3]
    字节数        6       3   （原文的 UTF-8 字节，分隔符不算）

常见疑问：
    为什么不直接存 .npy 或 .parquet？  裸的定宽数组最简单：任何语言两行代码就能读，也能从中间切；
                                       形状、宽度、来历都写在 manifest.json 里，人也能看。
    词元里混进了坏编号怎么办？         写的时候逐篇核对，打开时再比最大的编号（见 token_shard.py）。
    磁盘写满了呢？                     报错，临时目录被删掉，旧目录不动。
    两个进程同时写一个目录？           各写各的临时目录，后改名的那个留下；不会混成一份。

试一试：把演示里的 val_fraction 改成 0.001，看它怎样改用「切尾」，而不是给出空的验证集。

论文：按词元打包、文档间放分隔符 — Brown et al., *Language Models are Few-Shot Learners*,
      arXiv:2005.14165 附录 B。

改哪里：怎样划分 → document_split.py；怎样读回来 → token_shard.py；缓存何时失效 → prepare.py；
        文档之间放什么 → _encode_all 里的 ending。
"""

from __future__ import annotations

import tempfile
import warnings
from array import array
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from foundation.checks import check_float
from foundation.demonstration import run_demo
from foundation.files import atomic_directory, read_manifest
from tokenization.tokenizer import Tokenizer
from training.document_split import MIN_TOKENS, choose_split, text_hash
from training.documents import Document
from training.token_shard import KIND, SPLITS, TOKEN_DTYPES, TokenShard

__all__ = ["TokenShard", "check_target", "warn_if_shared", "write_shards"]

# 一次交给分词器的字符数：够它用满多核，又使中间结果的内存有界。
GROUP_CHARS = 1 << 20


def write_shards(
    documents: Iterable[Document],  # 只走一遍，可以是生成器
    tokenizer: Tokenizer,
    directory: Path | str,  # 不存在、空的、或旧的分片；别的一律拒绝
    *,
    val_fraction: float = 0.1,
    val_documents: Iterable[Document] | None = None,  # 给出时它就是验证集，不再划分
    facts: dict[str, Any] | None = None,  # 另存进 manifest.json，例如缓存的钥匙
    progress: Callable[[int], None] | None = None,  # 每写完一组调用一次，参数是累计字节数
) -> None:
    """分词并写成一个数据目录：要么完整，要么没有。内存与语料大小无关。

    用法：write_shards(load_corpus("python-docs"), tokenizer, "data")
          train = TokenShard.open("data", "train")

    错误：编码不了的文档（说出是哪一个）、词元太少、directory 里是别的东西时抛 ValueError
    警告：验证集里有训练集也有的文档
    """
    check_float("val_fraction", val_fraction, exclusive_minimum=0, exclusive_maximum=1)
    directory = Path(directory)
    check_target(directory)
    # manifest 最后才写，那时这个字典已经填好。
    # 各步的数字都记在里面，日后不必打开大文件就知道有多少词元、多少字节。
    extra: dict[str, Any] = {**(facts or {})}
    with atomic_directory(directory, kind=KIND, extra=extra) as temporary:
        if val_documents is not None:
            # ① 验证集另外给了：两份各写各的，不再划分
            train = _encode_all(documents, tokenizer, temporary / "train.bin", progress)
            val = _encode_all(val_documents, tokenizer, temporary / "val.bin", progress)
            how = "given"
        else:
            # ① 先全部写进一个文件，看完再划分；多写一遍磁盘，换来只读一遍语料
            whole = _encode_all(documents, tokenizer, temporary / "all.bin", progress)
            train, val, how = _divide(whole, temporary, tokenizer, val_fraction)
            Path(whole.file.name).unlink()
        # ② 文档起点另存：只有想知道文档边界的人才需要读它
        for split, part in zip(SPLITS, (train, val), strict=True):
            np.save(temporary / f"{split}.documents.npy", np.array(part.starts, dtype="<i8"))
        # 分词器跟着分片走：换了分词器，这些编号就成了乱码
        tokenizer.save(temporary)
        # ③ 日后打开时要核对的一切
        extra |= {
            "dtype": train.dtype.name,
            "vocab_size": tokenizer.vocab_size,
            "tokenizer": tokenizer.fingerprint,
            "split_by": how,
            "shared_documents": int(np.isin(val.hashes, train.hashes).sum()),
            "splits": {"train": train.facts("train"), "val": val.facts("val")},
        }
    # ④ 写完才警告：分片是好的，只是用来验证不合适
    warn_if_shared(extra, directory)


def warn_if_shared(manifest: dict[str, Any], directory: Path) -> None:
    """验证集里有训练过的文档就警告：那样的验证损失是在考背诵。

    最常见的原因是训练与验证给了同一个文件；靠文本的哈希来认，所以换了文件名也认得出。
    """
    # 部分相同也警告：一篇就可能占去验证集的大半
    shared = manifest["shared_documents"]
    if shared:
        n_val = manifest["splits"]["val"]["n_documents"]
        warnings.warn(
            f"{shared} of {n_val} validation documents in {directory} are also training "
            "documents (the same file twice?): the validation loss will look too good",
            stacklevel=3,
        )


class _Part:
    """正在写的一个分片：文件，以及每篇文档从哪里开始、几个字节、文本的哈希。

    >>> import io
    >>> part = _Part(io.BytesIO(), TOKEN_DTYPES["uint16"])
    >>> part.add(np.array([1, 2, 0]), n_bytes=6, hashed=111)
    >>> part.add(np.array([1, 0]), n_bytes=3, hashed=222)
    >>> part.starts.tolist(), part.n_tokens, part.n_bytes, part.max_id
    ([0, 3], 5, 9, 2)
    >>> part.file.getvalue().hex(" ", 2)
    '0100 0200 0000 0100 0000'
    """

    def __init__(self, file: BinaryIO, dtype: np.dtype) -> None:
        self.file, self.dtype = file, dtype
        # array 每项 8 字节；同样的 list 要多花几倍内存，千万篇文档时差别就大了。
        self.starts, self.sizes, self.hashes = array("q"), array("q"), array("Q")
        self.n_tokens, self.n_bytes, self.max_id = 0, 0, 0

    def add(self, tokens: np.ndarray, n_bytes: int, hashed: int) -> None:
        """接上一篇文档（或它的一段）。

        形状：tokens (L,)，含末尾的分隔符；n_bytes 是原文的 UTF-8 字节数，不含分隔符
        """
        self.file.write(tokens.astype(self.dtype).tobytes())
        self.starts.append(self.n_tokens)
        self.sizes.append(n_bytes)
        self.hashes.append(hashed)
        self.n_tokens += len(tokens)
        self.n_bytes += n_bytes
        # 顺手记下最大的编号：日后打开时只比这一个数，不必扫描整个文件
        self.max_id = max(self.max_id, int(tokens.max()))

    def facts(self, split: str) -> dict[str, int]:
        """写进 manifest 的数字；太短则抛 ValueError。"""
        # 划分时已保证够长；另给的验证语料却可能只有一个字
        if self.n_tokens < MIN_TOKENS:
            raise ValueError(
                f"the {split} split has {self.n_tokens} tokens, it needs at least {MIN_TOKENS}; "
                "give more text"
            )
        counts = {"n_tokens": self.n_tokens, "n_bytes": self.n_bytes, "max_id": self.max_id}
        return {**counts, "n_documents": len(self.starts)}


def _encode_all(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    path: Path,
    progress: Callable[[int], None] | None,
) -> _Part:
    """全部分词，按顺序写成一个文件；每篇末尾放分隔符（分词器有的话）。

    分隔符让模型知道「一篇结束了」：训练时不把两篇硬连成一篇，生成时也懂得停。
    文本里原有的 "<|endoftext|>" 字样按普通文字编码，不会被误当成分隔符。
    """
    ending = [] if tokenizer.end_id is None else [tokenizer.end_id]
    dtype = TOKEN_DTYPES["uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32"]
    with open(path, "wb") as file:
        part = _Part(file, dtype)
        for group in _groups(documents):
            for document, ids in zip(group, _encode(group, tokenizer), strict=True):
                # 空文本没有词元，只剩分隔符的「文档」也没有可学的
                if not ids:
                    continue
                tokens: np.ndarray = np.array(ids + ending)  # (L,)
                # 转成 uint16 会悄悄丢掉高位，所以先核对。
                assert tokens.max() < tokenizer.vocab_size, (tokens.max(), tokenizer.vocab_size)
                # 哈希取自文本而不是编号：换了分词器，划分也不变
                data = document.text.encode()
                part.add(tokens, len(data), text_hash(data))
            # 报字节而不报词元：用户知道自己的文件有多大，不知道有多少词元
            if progress is not None:
                progress(part.n_bytes)
    return part


def _groups(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """把文档攒成约 GROUP_CHARS 个字符的组，让分词器一次用满多核。

    一篇一篇地交，每次只用得上一个核；全部一起交，内存就要装下全部的编号。
    """
    # 按字符数而不按篇数：一篇可以是一行，也可以是一本书
    group: list[Document] = []
    size = 0
    for document in documents:
        group.append(document)
        size += len(document.text)
        if size >= GROUP_CHARS:
            yield group
            group, size = [], 0
    # 最后不满一组的
    if group:
        yield group


def _encode(group: list[Document], tokenizer: Tokenizer) -> list[list[int]]:
    """一组文档 → 每篇的编号；编码不了时抛 ValueError，说出是哪一篇。

    字节级 BPE 什么文本都编得了；按字符的分词器遇到词表里没有的字就不行：
    词表来自训练语料，而验证语料里有生字，是最常见的情形。
    """
    # 成批编码由分词器的多线程完成；我们的进程里没有循环
    try:
        return tokenizer.encode_batch([document.text for document in group])
    except ValueError:
        # 出错才逐篇重来：成批时分词器不知道文本来自哪里，而用户需要知道。
        for document in group:
            try:
                tokenizer.encode(document.text)
            except ValueError as error:
                raise ValueError(f"{document.source}: {error}") from None
        raise


def _divide(
    whole: _Part, folder: Path, tokenizer: Tokenizer, val_fraction: float
) -> tuple[_Part, _Part, str]:
    """把写好的全文分进两个文件；返回两部分，以及用了哪种办法。

    划分的依据见 document_split.py；这里只管照着搬：顺序不变，一个词元不多、一个不少。
    """
    # 每篇的终点就是下一篇的起点，最后一篇的终点是全文的末尾
    ends = [*whole.starts[1:], whole.n_tokens]
    lengths: np.ndarray = np.array(ends, dtype=np.int64) - np.array(whole.starts)  # (N,)
    hashes, sizes = np.array(whole.hashes), np.array(whole.sizes)  # (N,)
    # cuts[i]：第 i 篇的前多少个词元归训练集，其余归验证集
    cuts, how = choose_split(hashes, sizes, lengths, val_fraction)
    # 三个文件同时开着，顺着读、顺着写，磁盘最省力
    with (
        open(whole.file.name, "rb") as source,
        open(folder / "train.bin", "wb") as train_file,
        open(folder / "val.bin", "wb") as val_file,
    ):
        train, val = _Part(train_file, whole.dtype), _Part(val_file, whole.dtype)
        rows = zip(lengths.tolist(), whole.sizes, whole.hashes, cuts.tolist(), strict=True)
        for length, size, hashed, cut in rows:
            # 文档按写入的顺序依次读回，一次只有一篇在内存里
            data = source.read(length * whole.dtype.itemsize)
            tokens: np.ndarray = np.frombuffer(data, dtype=whole.dtype)  # (L,)
            head, tail = tokens[:cut], tokens[cut:]
            # 切开的那一篇，字节数要按词元重新数；整篇的用原文的字节数
            tail_size = _count_bytes(tail, tokenizer) if 0 < cut < length else size * (cut == 0)
            # 整篇归一边时，另一边是空的，不留下零长的文档
            if len(head):
                train.add(head, size - tail_size, hashed)
            if len(tail):
                # 两段文本不同，哈希也该不同，否则会被当成「重复的文档」
                val.add(tail, tail_size, hashed ^ (cut > 0))
    return train, val, how


def _count_bytes(tokens: np.ndarray, tokenizer: Tokenizer) -> int:
    """这些词元合多少字节的原文；分隔符不是原文。

    切口可以落在一个汉字的字节中间（BPE 的词元是字节串），所以数字节，而不解码成文本。
    """
    return sum(len(tokenizer.token_bytes(i)) for i in tokens.tolist() if i != tokenizer.end_id)


def check_target(directory: Path) -> None:
    """写完要替换掉旧目录；若那里是别的东西（用户的文件！），绝不能替换。

    只有三种情形可以写：还不存在；空目录；本来就是词元分片（有我们的 manifest）。
    """
    # 指着一个普通文件、或有文件却没有 manifest 的文件夹，都多半是写错了路径
    if not directory.exists():
        return
    if directory.is_dir():
        if not any(directory.iterdir()):
            return
        # 只看 manifest 说自己是什么，不核对内容：坏了的分片正是该重写的
        try:
            read_manifest(directory, kind=KIND)
        except ValueError as error:
            reason = str(error)
        else:
            return
    else:
        reason = "it is a file"  # 例如 --out 指着一个 .txt
    # 说出为什么不认它，并把删除留给用户自己
    raise ValueError(
        f"{directory} exists and does not hold token shards ({reason}); "
        "choose another folder, or remove it yourself"
    )


def demo() -> None:
    """几首小诗 → 分词 → 分片 → 读回；看划分怎样避免泄题。

    一百多篇短文档，其中三篇重复；再把它们连成一篇，看「切尾」。
    """
    poems = ("床前明月光，疑是地上霜。", "举头望明月，低头思故乡。", "白日依山尽，黄河入海流。")
    documents = [Document(f"{poem}（其{i}）", f"poem {i}") for i in range(40) for poem in poems]
    documents += documents[:3]  # 重复的三篇，看它们会不会落在两边
    tokenizer = Tokenizer.characters(document.text for document in documents)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "data")
        write_shards(documents, tokenizer, folder, val_fraction=0.2)
        print("① 一个数据目录")
        for path in sorted(folder.iterdir()):
            # 字节数 = 词元数 × 2：词表不大，用 uint16
            print(f"   {path.name:<22} {path.stat().st_size:>6} 字节")
        with TokenShard.open(folder) as train, TokenShard.open(folder, "val") as val:
            # 第一篇是从 0 到第二个起点；分隔符在它自己那一篇的末尾
            print("② 读回来：每个文档以 <|endoftext|> 结尾，document_starts 指出各自的开头")
            first, second = train.document_starts[:2]
            print(f"   编号 {train.tokens[first:second].tolist()}")
            print(f"   文本 {tokenizer.decode(train.tokens[first:second])}")
            assert tokenizer.decode(train.tokens[first:second]).endswith("<|endoftext|>")
            # 把两个分片各自还原成一篇篇文本：没有交集，合起来就是原来的全部
            texts = [_texts(shard, tokenizer) for shard in (train, val)]
            print("③ 按文档划分：没有一篇同时在两边，重复的也不会")
            print(f"   训练 {len(texts[0])} 篇，验证 {len(texts[1])} 篇，共同的 0 篇")
            assert not set(texts[0]) & set(texts[1])
            assert sorted(texts[0] + texts[1]) == sorted(d.text for d in documents)
            # 裸的 .bin 文件没有这个数；write_shards 写的一定有
            assert train.bytes_per_token is not None
            print(f"   一个词元平均合 {train.bytes_per_token:.2f} 个字节（汉字在 UTF-8 里占 3 个）")
        # 同一个目录再写一次：旧的是分片，可以替换；用完先关，Windows 才能改名
        print("④ 只有一个文档：切尾，末尾的 val_fraction 归验证集")
        book = [Document("".join(document.text for document in documents), "book")]
        write_shards(book, tokenizer, folder, val_fraction=0.2)
        with TokenShard.open(folder) as train, TokenShard.open(folder, "val") as val:
            print(f"   训练 {len(train)} 个词元，验证 {len(val)} 个")
            # 份额精确到一个词元；两段首尾相接，就是原来的全文
            assert round(0.2 * (len(train) + len(val))) == len(val)
            assert tokenizer.decode([*train.tokens, *val.tokens], skip_special=True) == book[0].text


def _texts(shard: TokenShard, tokenizer: Tokenizer) -> list[str]:
    """分片 → 每篇文档的文本：在文档起点处切开，逐段解码。"""
    pieces = np.split(shard.tokens, shard.document_starts[1:])
    return [tokenizer.decode(piece.tolist(), skip_special=True) for piece in pieces]


if __name__ == "__main__":
    run_demo(demo)
