r"""文本只分词一次：怎样把语料存成「词元分片」（token shard），写到一半断电也不会留下半成品？

分词（tokenization）比读盘慢得多，所以只做一次，把编号按固定宽度接成一个长文件，
以后每次训练都用内存映射直接取（见 token_shard.py）。

    文档 ──装成份──▶ 分词 ──▶ 编号 + <|endoftext|> ──▶ 一份一个文件 ──划分──▶ train.bin
    （一次几份在内存里，见 token_parts.py）              │                  val.bin
                                                         └ 每篇的词元数、字节数、哈希

    数据目录
    ├── train.bin  val.bin                       词元，小端序（little-endian），宽 w 字节
    ├── train.documents.npy  val.documents.npy   每篇文档第一个词元的位置，int64
    ├── tokenizer.json                           没有它，编号就没有意义
    └── manifest.json                            最后写：各文件的大小与 SHA-256、词表、份额……

每个词元的宽度由词表大小 V 决定，够用就行——文件小一半，读得也快一倍：

$$w = \begin{cases} 2 & V \le 2^{16} \\ 4 & \text{otherwise} \end{cases}$$

为什么先写成份再划分：按文档的哈希划分要等看完全部文档才知道行不行（见 document_split.py）。
为什么在临时目录里写：全部写好、刷到磁盘、改名，三步之后才算数；中途出错，旧目录原样还在。
为什么不边训练边分词：那样每个词元在每一轮都要重新分词，打乱顺序也无从谈起。

内存：任何时候只有几份文档的文本与编号（见 token_parts.py），外加每篇文档几十个字节。

比特每字节（bits per byte）让不同的分词器可以比较，为此记下一个词元平均合多少字节的原文：

$$\text{bpb} = \frac{\text{每词元损失（nat）}}{\ln 2 \cdot \text{n\_bytes} / \text{n\_tokens}}$$

一步一步看：词表 {e: 0, 春: 1, 眠: 2}（e 是分隔符），两篇文档「春眠」「春」：

    编号          1 2 e   1 e                     tokens 的字节   0100 0200 0000 0100 0000
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
        文档之间放什么、怎样分给许多进程 → token_parts.py。
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from foundation.checks import check_float
from foundation.demonstration import run_demo
from foundation.files import atomic_directory, read_manifest
from tokenization.tokenizer import Tokenizer
from training.document_split import MIN_TOKENS, choose_split
from training.documents import Document
from training.token_parts import Part, encode_parts, read_tokens
from training.token_shard import KIND, SPLITS, TOKEN_DTYPES, TokenShard

__all__ = ["TokenShard", "check_target", "warn_if_shared", "write_shards"]


def write_shards(
    documents: Iterable[Document],  # 只走一遍，可以是生成器
    tokenizer: Tokenizer,
    directory: Path | str,  # 不存在、空的、或旧的分片；别的一律拒绝
    *,
    val_fraction: float = 0.1,
    val_documents: Iterable[Document] | None = None,  # 给出时它就是验证集，不再划分
    facts: dict[str, Any] | None = None,  # 另存进 manifest.json，例如缓存的钥匙
    late_facts: Callable[[], dict[str, Any]] | None = None,  # 读完语料才知道的，例如丢了几篇
    progress: Callable[[int], None] | None = None,  # 每做完一份调用一次，参数是累计字节数
    workers: int = 1,  # 几个进程分词；结果与它无关
    parts_in: Path | None = None,  # 做好的各份留在哪里，断了可以接着用；不给就不留
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
        # ① 全部分好词再划分；多写一遍磁盘，换来只读一遍语料
        folder = temporary / "parts" if parts_in is None else parts_in
        ready = _counted(encode_parts(documents, tokenizer, folder, workers=workers), progress)
        if val_documents is not None:
            # 验证集另外给了：两份各写各的，不再划分
            others = list(
                encode_parts(val_documents, tokenizer, folder, name="val", workers=workers)
            )
            train = _whole(ready, temporary / "train.bin", tokenizer)
            val = _whole(others, temporary / "val.bin", tokenizer)
            how = "given"
        else:
            train, val, how = _divide(ready, temporary, tokenizer, val_fraction)
        # 份已抄进分片；留着的话，manifest 会把它们也算进去
        if parts_in is None:
            shutil.rmtree(folder)
        # ② 文档起点另存：只有想知道文档边界的人才需要读它
        for split, part in zip(SPLITS, (train, val), strict=True):
            np.save(temporary / f"{split}.documents.npy", part.starts.astype("<i8"))
        # 分词器跟着分片走：换了分词器，这些编号就成了乱码
        tokenizer.save(temporary)
        extra |= late_facts() if late_facts is not None else {}
        # ③ 日后打开时要核对的一切
        extra |= {
            "dtype": _dtype_for(tokenizer).name,
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


class _Split:
    """正在写的一个分片：一个文件，与每篇文档的长短。

    >>> import io
    >>> split = _Split(io.BytesIO(), TOKEN_DTYPES["uint16"])
    >>> split.add(np.array([1, 2, 0, 1, 0]), np.array([3, 2]), np.array([6, 3]), np.array([11, 22]))
    >>> split.starts.tolist(), split.n_tokens, split.n_bytes, split.max_id
    ([0, 3], 5, 9, 2)
    >>> split.file.getvalue().hex(" ", 2)
    '0100 0200 0000 0100 0000'
    """

    def __init__(self, file: BinaryIO, dtype: np.dtype) -> None:
        self.file, self.dtype = file, dtype
        self.n_tokens, self.n_bytes, self.max_id = 0, 0, 0
        # 一份一个数组，末了才接起来：每篇 16 字节，不用每项几十字节的 list
        self._lengths: list[np.ndarray] = []
        self._hashes: list[np.ndarray] = []

    def add(
        self, tokens: np.ndarray, lengths: np.ndarray, sizes: np.ndarray, hashes: np.ndarray
    ) -> None:
        """接上几篇文档（或一篇的一段）。

        形状：tokens (Σ lengths,)，含每篇末尾的分隔符；其余 (N,)；sizes 是原文的 UTF-8 字节数
        """
        # 一份里的文档可以全归另一边
        if not len(lengths):
            return
        # 一般已是这个宽度，copy=False 就不复制
        self.file.write(tokens.astype(self.dtype, copy=False).tobytes())
        self._lengths.append(lengths)
        self._hashes.append(hashes)
        self.n_tokens += len(tokens)
        self.n_bytes += int(sizes.sum())
        # 顺手记下最大的编号：日后打开时只比这一个数，不必扫描整个文件
        self.max_id = max(self.max_id, int(tokens.max()))

    @property
    def starts(self) -> np.ndarray:
        """每篇第一个词元的位置：(N,)。"""
        # 前面各篇的长度之和；末一篇的终点不必记，它就是全文的长度
        lengths = _joined(self._lengths, np.int64)
        starts: np.ndarray = np.cumsum(lengths) - lengths
        return starts

    @property
    def hashes(self) -> np.ndarray:
        """每篇文本的哈希：(N,)。"""
        return _joined(self._hashes, np.uint64)

    def facts(self, split: str) -> dict[str, int]:
        """写进 manifest 的数字；太短则抛 ValueError。"""
        # 划分时已保证够长；另给的验证语料却可能只有一个字
        if self.n_tokens < MIN_TOKENS:
            raise ValueError(
                f"the {split} split has {self.n_tokens} tokens, it needs at least {MIN_TOKENS}; "
                "give more text"
            )
        counts = {"n_tokens": self.n_tokens, "n_bytes": self.n_bytes, "max_id": self.max_id}
        return {**counts, "n_documents": sum(map(len, self._lengths))}


def _joined(arrays: list[np.ndarray], dtype: Any) -> np.ndarray:
    """首尾相接；一个也没有时是空的。"""
    joined: np.ndarray = np.concatenate(arrays) if arrays else np.empty(0, dtype=dtype)
    return joined


def _counted(parts: Iterable[Part], progress: Callable[[int], None] | None) -> list[Part]:
    """把各份收齐，每收一份报一次累计的字节数。

    收的是长短与哈希，每篇 24 个字节；词元还在各份的文件里。
    报字节而不报词元：用户知道自己的文件有多大，不知道有多少词元
    """
    collected: list[Part] = []
    n_bytes = 0
    for part in parts:
        collected.append(part)
        n_bytes += int(part.sizes.sum())
        if progress is not None:
            progress(n_bytes)
    return collected


def _whole(parts: list[Part], path: Path, tokenizer: Tokenizer) -> _Split:
    """各份首尾相接，写成一个分片。"""
    with open(path, "wb") as file:
        split = _Split(file, _dtype_for(tokenizer))
        # 一次只有一份的词元在内存里
        for part in parts:
            split.add(read_tokens(part), part.lengths, part.sizes, part.hashes)
    return split


def _divide(
    parts: list[Part], folder: Path, tokenizer: Tokenizer, val_fraction: float
) -> tuple[_Split, _Split, str]:
    """把各份分进两个文件；返回两部分，以及用了哪种办法。

    划分的依据见 document_split.py；这里只管照着搬：顺序不变，一个词元不多、一个不少。
    """
    # cuts[i]：第 i 篇的前多少个词元归训练集，其余归验证集
    cuts, how = choose_split(
        _joined([part.hashes for part in parts], np.uint64),
        _joined([part.sizes for part in parts], np.int64),
        _joined([part.lengths for part in parts], np.int64),
        val_fraction,
    )
    # 顺着读、顺着写，磁盘最省力；一次只有一份在内存里
    with open(folder / "train.bin", "wb") as one, open(folder / "val.bin", "wb") as other:
        train, val = _Split(one, _dtype_for(tokenizer)), _Split(other, _dtype_for(tokenizer))
        # cuts 是全体的，各份只看自己的那一段
        first = 0
        for part in parts:
            last = first + len(part.lengths)
            _divide_part(part, cuts[first:last], train, val, tokenizer)
            first = last
    return train, val, how


def _divide_part(
    part: Part, cuts: np.ndarray, train: _Split, val: _Split, tokenizer: Tokenizer
) -> None:
    """一份里的每篇：前 cuts 个词元归训练集，其余归验证集。

    形状：cuts (N,)，0 ≤ cuts ≤ lengths；只有切尾时的那一篇在两者之间
    """
    # 没有逐篇的循环：千万篇文档时，Python 的循环比读写磁盘还慢
    tokens, lengths = read_tokens(part), part.lengths  # (n,)、(N,)
    # ① 每个词元在自己那一篇里是第几个，小于 cuts 的归训练集
    starts = np.cumsum(lengths) - lengths
    places = np.arange(len(tokens)) - np.repeat(starts, lengths)  # (n,)
    to_train = places < np.repeat(cuts, lengths)  # (n,)
    # ② 切开的那一篇，字节数要按词元重新数；整篇的用原文的字节数
    rest_sizes = np.where(cuts == 0, part.sizes, 0)  # (N,)
    for index in np.flatnonzero((cuts > 0) & (cuts < lengths)):
        tail = tokens[starts[index] + cuts[index] : starts[index] + lengths[index]]
        rest_sizes[index] = _count_bytes(tail, tokenizer)
    # ③ 整篇归一边时，另一边是空的，不留下零长的文档
    head, tail = cuts > 0, cuts < lengths  # (N,)
    train.add(tokens[to_train], cuts[head], (part.sizes - rest_sizes)[head], part.hashes[head])
    # 两段文本不同，哈希也该不同，否则会被当成「重复的文档」
    hashes = part.hashes ^ (cuts > 0).astype(np.uint64)
    val.add(tokens[~to_train], (lengths - cuts)[tail], rest_sizes[tail], hashes[tail])


def _dtype_for(tokenizer: Tokenizer) -> np.dtype:
    """词表装得下的最窄的宽度。"""
    return TOKEN_DTYPES["uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32"]


def _count_bytes(tokens: np.ndarray, tokenizer: Tokenizer) -> int:
    """这些词元合多少字节的原文；分隔符不是原文。

    切口可以落在一个汉字的字节中间（BPE 的词元是字节串），所以数字节，而不解码成文本。
    """
    # 只数被切开的那一篇的后半截，所以逐个词元地数也不慢
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
