r"""文本只分词一次：怎样把语料存成「词元分片」（token shard），让几十 GB 也像数组一样随取随用？

分词（tokenization）比读盘慢得多，所以只做一次，把编号按固定宽度接成一个长文件，
以后每次训练都用内存映射直接取（见 token_shard.py）。

    文档 ──encode_batch──▶ 编号 + <|endoftext|> ──▶ train.bin  [t t t t e t t e t t t e …]
                                        └──────────▶ val.bin                └ document_starts
    数据目录：train.bin  val.bin  *.documents.npy  tokenizer.json  manifest.json（最后写）

每个词元的字节数由词表大小 V 决定，小端序（little-endian）：

$$w = \begin{cases} 2 & V \le 2^{16} \\ 4 & \text{otherwise} \end{cases}
\qquad \text{n\_tokens} = \text{file size} / w$$

划分训练集与验证集：以文档为单位，只看文档自己的文本，f 为验证集比例，

$$\mathrm{val} \iff \mathrm{SHA256}(\text{text})_{0..63} < f \cdot 2^{64}$$

于是同一文本永远在同一侧（重复的文档不会泄题），语料变大时旧文档也不换边。
文档太少时哈希碰运气：若验证集占的字节数不在 [f/2, 2f] 内，改为「切尾」——全文末尾的 f 归验证集，
切点所在的文档一分为二。只有一个文件的语料（例如一本小说）走的就是这条路。

比特每字节（bits per byte）需要知道一个词元平均合多少字节：bytes_per_token = n_bytes / n_tokens。

论文：PaLM（文档间放分隔符、按词元打包），arXiv:2204.02311。

改哪里：换划分办法 → _choose_split；怎样读回来 → token_shard.py；缓存何时失效 → prepare.py。
"""

from __future__ import annotations

import tempfile
import warnings
from array import array
from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from foundation.checks import check_float
from foundation.demonstration import run_demo
from foundation.files import atomic_directory, read_manifest
from tokenization.tokenizer import Tokenizer
from training.documents import Document
from training.token_shard import KIND, SPLITS, TOKEN_DTYPES, TokenShard

__all__ = ["TokenShard", "write_shards"]

# 一次交给分词器的字符数：够它用满多核，又使中间结果的内存有界。
GROUP_CHARS = 1 << 20
# 没有一道「前文 → 下一个」的题，就不成一个分片。
MIN_TOKENS = 2


def write_shards(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    directory: Path | str,
    *,
    val_fraction: float = 0.1,
    val_documents: Iterable[Document] | None = None,
    facts: dict[str, Any] | None = None,
    progress: Callable[[int], None] | None = None,
) -> None:
    """分词并写成一个数据目录：要么完整，要么没有。内存与语料大小无关。

    类型：val_documents 给出时它就是验证集，val_fraction 不起作用；facts 另存进 manifest.json；
          progress 每写完一组文档被调用一次，参数是累计的 UTF-8 字节数
    错误：编码不了的文档（说出是哪一个）、词元太少、directory 里是别的东西时抛 ValueError
    """
    check_float("val_fraction", val_fraction, exclusive_minimum=0, exclusive_maximum=1)
    directory = Path(directory)
    _refuse_foreign(directory)
    # manifest 最后才写，那时这个字典已经填好。
    extra: dict[str, Any] = {**(facts or {})}
    with atomic_directory(directory, kind=KIND, extra=extra) as temporary:
        if val_documents is not None:
            train = _encode_all(documents, tokenizer, temporary / "train.bin", progress)
            val = _encode_all(val_documents, tokenizer, temporary / "val.bin", progress)
            how = "given"
        else:
            # 先全部写进一个文件：文档够不够按哈希来分，要看完才知道。
            whole = _encode_all(documents, tokenizer, temporary / "all.bin", progress)
            train, val, how = _divide(whole, temporary, tokenizer, val_fraction)
            Path(whole.file.name).unlink()
        for split, part in zip(SPLITS, (train, val), strict=True):
            np.save(temporary / f"{split}.documents.npy", np.array(part.starts, dtype="<i8"))
        tokenizer.save(temporary)
        extra |= {
            "dtype": train.dtype.name,
            "vocab_size": tokenizer.vocab_size,
            "tokenizer": tokenizer.fingerprint,
            "split_by": how,
            "shared_documents": int(np.isin(val.hashes, train.hashes).sum()),
            "splits": {"train": train.facts("train"), "val": val.facts("val")},
        }
    warn_if_shared(extra, directory)


def warn_if_shared(manifest: dict[str, Any], directory: Path) -> None:
    """验证集里有训练过的文档就警告：那样的验证损失是在考背诵。"""
    shared = manifest["shared_documents"]
    if shared:
        n_val = manifest["splits"]["val"]["n_documents"]
        warnings.warn(
            f"{shared} of {n_val} validation documents in {directory} are also training "
            "documents (the same file twice?): the validation loss will look too good",
            stacklevel=3,
        )


class _Part:
    """正在写的一个分片：文件，以及每个文档从哪里开始、几个字节、文本的哈希。"""

    def __init__(self, file: BinaryIO, dtype: np.dtype) -> None:
        self.file, self.dtype = file, dtype
        # array 每项 8 字节；同样的 list 要多花几倍内存，千万个文档时差别就大了。
        self.starts, self.sizes, self.hashes = array("q"), array("q"), array("Q")
        self.n_tokens, self.n_bytes, self.max_id = 0, 0, 0

    def add(self, tokens: np.ndarray, n_bytes: int, text_hash: int) -> None:
        """接上一个文档（或它的一段）。"""
        self.file.write(tokens.astype(self.dtype).tobytes())
        self.starts.append(self.n_tokens)
        self.sizes.append(n_bytes)
        self.hashes.append(text_hash)
        self.n_tokens += len(tokens)
        self.n_bytes += n_bytes
        self.max_id = max(self.max_id, int(tokens.max()))

    def facts(self, split: str) -> dict[str, int]:
        """写进 manifest 的数字；太短则抛 ValueError。"""
        if self.n_tokens < MIN_TOKENS:
            raise ValueError(
                f"the {split} split has {self.n_tokens} tokens, it needs at least {MIN_TOKENS}; "
                "give more text"
            )
        return {
            "n_tokens": self.n_tokens,
            "n_bytes": self.n_bytes,
            "n_documents": len(self.starts),
            "max_id": self.max_id,
        }


def _encode_all(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    path: Path,
    progress: Callable[[int], None] | None,
) -> _Part:
    """全部分词，写成一个文件。"""
    ending = [] if tokenizer.end_id is None else [tokenizer.end_id]
    with open(path, "wb") as file:
        part = _Part(file, _token_dtype(tokenizer))
        for group in _groups(documents):
            for document, ids in zip(group, _encode(group, tokenizer), strict=True):
                if not ids:
                    continue
                tokens: np.ndarray = np.array(ids + ending)
                # 转成 uint16 会悄悄丢掉高位，所以先核对。
                assert tokens.max() < tokenizer.vocab_size, (tokens.max(), tokenizer.vocab_size)
                data = document.text.encode()
                part.add(tokens, len(data), int.from_bytes(sha256(data).digest()[:8], "big"))
            if progress is not None:
                progress(part.n_bytes)
    return part


def _groups(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """把文档攒成约 GROUP_CHARS 个字符的组，让分词器一次用满多核。"""
    group: list[Document] = []
    size = 0
    for document in documents:
        group.append(document)
        size += len(document.text)
        if size >= GROUP_CHARS:
            yield group
            group, size = [], 0
    if group:
        yield group


def _encode(group: list[Document], tokenizer: Tokenizer) -> list[list[int]]:
    try:
        return tokenizer.encode_batch([document.text for document in group])
    except ValueError:
        # 出错才逐个重来：为的是说出是哪一个文档。
        for document in group:
            try:
                tokenizer.encode(document.text)
            except ValueError as error:
                raise ValueError(f"{document.source}: {error}") from None
        raise


def _divide(
    whole: _Part, folder: Path, tokenizer: Tokenizer, val_fraction: float
) -> tuple[_Part, _Part, str]:
    """把写好的全文分进两个文件；返回两部分，以及用了哪种办法。"""
    if whole.n_tokens < 2 * MIN_TOKENS:
        raise ValueError(
            f"the corpus has {whole.n_tokens} tokens ({whole.n_bytes} bytes); a train and a val "
            f"split need at least {MIN_TOKENS} each, {2 * MIN_TOKENS} together; give more text"
        )
    cuts, how = _choose_split(whole, val_fraction)
    ends = [*whole.starts[1:], whole.n_tokens]
    with (
        open(whole.file.name, "rb") as source,
        open(folder / "train.bin", "wb") as train_file,
        open(folder / "val.bin", "wb") as val_file,
    ):
        train, val = _Part(train_file, whole.dtype), _Part(val_file, whole.dtype)
        rows = zip(whole.starts, ends, whole.sizes, whole.hashes, cuts.tolist(), strict=True)
        for start, end, size, text_hash, cut in rows:
            # 文档按写入的顺序依次读回，一次只有一个在内存里。
            data = source.read((end - start) * whole.dtype.itemsize)
            tokens: np.ndarray = np.frombuffer(data, dtype=whole.dtype)
            head, tail = tokens[:cut], tokens[cut:]
            if len(head) == 0:
                val.add(tail, size, text_hash)
            elif len(tail) == 0:
                train.add(head, size, text_hash)
            else:
                n_bytes = _count_bytes(tail, tokenizer)
                train.add(head, size - n_bytes, text_hash)
                # 两段文本不同，哈希也该不同，否则会被当成「重复的文档」。
                val.add(tail, n_bytes, text_hash ^ 1)
    return train, val, how


def _choose_split(whole: _Part, val_fraction: float) -> tuple[np.ndarray, str]:
    """每个文档的前多少个词元归训练集，其余归验证集：0 = 整篇验证，全长 = 整篇训练。

    形状：(n_documents,) int64
    """
    starts: np.ndarray = np.array(whole.starts)
    lengths: np.ndarray = np.diff(np.append(starts, whole.n_tokens))
    # ① 按哈希：每个文档自己决定去哪边，与别的文档无关
    to_val: np.ndarray = np.array(whole.hashes) < np.uint64(int(val_fraction * 2**64))
    share = np.array(whole.sizes)[to_val].sum() / max(whole.n_bytes, 1)
    if val_fraction / 2 <= share <= val_fraction * 2 and not to_val.all():
        return np.where(to_val, 0, lengths), "documents"
    # ② 文档太少，哈希碰运气：切尾，份额精确，且两边都不会空
    place = whole.n_tokens - round(val_fraction * whole.n_tokens)
    place = min(max(place, MIN_TOKENS), whole.n_tokens - MIN_TOKENS)
    return np.clip(place - starts, 0, lengths), "tail"


def _count_bytes(tokens: np.ndarray, tokenizer: Tokenizer) -> int:
    """这些词元合多少字节的原文；文档分隔符不是原文。"""
    return sum(len(tokenizer.token_bytes(i)) for i in tokens.tolist() if i != tokenizer.end_id)


def _token_dtype(tokenizer: Tokenizer) -> np.dtype:
    return TOKEN_DTYPES["uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32"]


def _refuse_foreign(directory: Path) -> None:
    """写完要替换掉旧目录；若那里是别的东西（用户的文件！），绝不能替换。"""
    if not directory.exists():
        return
    if directory.is_dir():
        if not any(directory.iterdir()):
            return
        try:
            read_manifest(directory, kind=KIND)
        except ValueError as error:
            reason = str(error)
        else:
            return
    else:
        reason = "it is a file"
    raise ValueError(
        f"{directory} exists and does not hold token shards ({reason}); "
        "choose another folder, or remove it yourself"
    )


def demo() -> None:
    """几首小诗 → 分词 → 分片 → 读回；看划分怎样避免泄题。"""
    poems = ("床前明月光，疑是地上霜。", "举头望明月，低头思故乡。", "白日依山尽，黄河入海流。")
    documents = [Document(f"{poem}（其{i}）", f"poem {i}") for i in range(40) for poem in poems]
    documents += documents[:3]  # 重复的三篇
    tokenizer = Tokenizer.characters(document.text for document in documents)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "data")
        write_shards(documents, tokenizer, folder, val_fraction=0.2)
        print("① 一个数据目录")
        for path in sorted(folder.iterdir()):
            print(f"   {path.name:<22} {path.stat().st_size:>6} 字节")
        with TokenShard.open(folder) as train, TokenShard.open(folder, "val") as val:
            print("② 读回来：每个文档以 <|endoftext|> 结尾，document_starts 指出各自的开头")
            first, second = train.document_starts[:2]
            print(f"   编号 {train.tokens[first:second].tolist()}")
            print(f"   文本 {tokenizer.decode(train.tokens[first:second])}")
            assert tokenizer.decode(train.tokens[first:second]).endswith("<|endoftext|>")
            texts = [_texts(shard, tokenizer) for shard in (train, val)]
            print("③ 按文档划分：没有一篇同时在两边，重复的也不会")
            print(f"   训练 {len(texts[0])} 篇，验证 {len(texts[1])} 篇，共同的 0 篇")
            assert not set(texts[0]) & set(texts[1])
            assert sorted(texts[0] + texts[1]) == sorted(d.text for d in documents)
            assert train.bytes_per_token is not None
            print(f"   一个词元平均合 {train.bytes_per_token:.2f} 个字节（汉字在 UTF-8 里占 3 个）")
        print("④ 只有一个文档：切尾，末尾的 val_fraction 归验证集")
        book = [Document("".join(document.text for document in documents), "book")]
        write_shards(book, tokenizer, folder, val_fraction=0.2)
        with TokenShard.open(folder) as train, TokenShard.open(folder, "val") as val:
            print(f"   训练 {len(train)} 个词元，验证 {len(val)} 个")
            assert round(0.2 * (len(train) + len(val))) == len(val)
            assert tokenizer.decode([*train.tokens, *val.tokens], skip_special=True) == book[0].text


def _texts(shard: TokenShard, tokenizer: Tokenizer) -> list[str]:
    pieces = np.split(shard.tokens, shard.document_starts[1:])
    return [tokenizer.decode(piece.tolist(), skip_special=True) for piece in pieces]


if __name__ == "__main__":
    run_demo(demo)
