r"""几十 GB 的文本怎样用满每个核去分词，中途被杀也不白做，结果还与只用一个核时逐字节相同？

分词是一篇一篇独立的事，可以分给许多进程；但「谁先做完」每次都不同，直接按完成的先后写文件，
得到的顺序就没法重现。办法是把文档按顺序装成一份一份（part），各份独立分词、各存一个文件，
最后按份的编号取回：

    文档流 ──按顺序装箱──▶ 第 0 份 ──▶ 进程甲 ──▶ part-000000.safetensors ──┐
                          第 1 份 ──▶ 进程乙 ──▶ part-000001.safetensors ──┼─按编号──▶ 词元流
                          第 2 份 ──▶ 进程甲 ──▶ part-000002.safetensors ──┘

装箱只看文档本身（攒够 PART_CHARS 个字符或 PART_DOCUMENTS 篇就封箱），与进程数无关，所以

$$\text{tokens}(W\ \text{个进程}) = \text{tokens}(1\ \text{个进程}) \qquad \forall\, W$$

断了怎样接上？不记「做到第几份」，而让每一份认得自己的内容：

$$\text{digest} = \mathrm{SHA256}(\text{分词器},\ \text{分隔符},\ \text{各篇的长度与字节})$$

再跑一次时照样从头读、照样装箱（读比分词快几十倍），第 i 份的文件若在、digest 相同、内容的
校验和也对，就直接用它；否则重做这一份。语料改了一个字、换了分词器、写到一半断电、坏了一个
比特，都只是「digest 或校验和不符」，不必另想。

    part-000001.safetensors
    ├── tokens   (n,)  uint16 或 uint32，各篇首尾相接，每篇末尾一个分隔符
    ├── lengths  (N,)  各篇的词元数          ├── sizes (N,)  各篇原文的 UTF-8 字节数
    └── hashes   (N,)  各篇文本的 64 位哈希（划分训练与验证用，见 document_split.py）

内存：主进程同时攥着至多 2W + 1 份文本，每个工作进程一份文本与它的词元；与语料大小无关。

一步一步看，词表 {e: 0, 春: 1, 眠: 2}，PART_CHARS = 3，文档「春眠」「春」「眠」：

    装箱    [春眠, 春]  [眠]              攒到 3 个字符就封箱；末一箱可以不满
    tokens  1 2 0 1 0   2 0              lengths  3 2 │ 2        sizes  6 3 │ 3

常见疑问：
    为什么不用线程？      分词库自己有线程（只用一个进程时就靠它）；但取回编号、数字节、算哈希是
                          Python 的活，线程之间要轮流，核多了就用不满。进程见 worker_processes.py。
    小语料也分给许多进程？不值得：启动一个进程要半秒上下（prepare.py 里怎样选）。
    为什么一份一个文件？  文件名就是次序，改名是原子的；写到一半的份，名字根本不会出现。

    文档比一份还长呢？    不会：documents.py 已把它切到百万字符以内；一份至少装一篇。
    为什么不压缩？        编号本来就只占原文的一小半，做完即删；省下的磁盘不值得花的时间。
    份多了会慢吗？        十亿词元约一千份，都在一个文件夹里，任何文件系统都应付得了。
    safetensors 不是装权重的吗？  它只是「几个有名字的数组」的文件，能跳着读、不能藏代码，正合用。

    谁的错       怎样认出来                       怎么办
    写到一半断电  名字还是 .tmp-…，没有正式的名字   当作没有
    截短、清空    safetensors 的头部对不上         重做这一份
    翻转比特      checksum 对不上                 重做这一份
    语料改了      digest 对不上                   重做这一份，与它后面错开了的各份
    换了分词器    digest 全对不上                 全部重做

论文：「确定的分块、可以重做的任务」— Dean & Ghemawat, *MapReduce*, OSDI 2004。

改哪里：换更快的编码 → encode_documents，只此一处；一份多大 → PART_CHARS。
"""

from __future__ import annotations

import os
import secrets
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from foundation.checks import check_int
from foundation.demonstration import run_demo
from tokenization.tokenizer import Tokenizer
from training.document_split import text_hash
from training.documents import Document
from training.token_shard import TOKEN_DTYPES
from training.worker_processes import in_order

__all__ = ["Part", "encode_documents", "encode_parts", "read_tokens"]

# 一份的字符数：大到启动、存取的零头可以忽略，小到几份就能分给几个核，断了也只白做一份。
PART_CHARS = 1 << 22
# 极短的文档（一行一个词）按字符攒会攒出几百万篇，所以篇数也设上限。
PART_DOCUMENTS = 1 << 16
# 一次交给分词库的字符数：够它用满多核，又使中间结果的内存有界。
GROUP_CHARS = 1 << 20
# 份的写法变了就加一，旧的份便认不出来，自然重做。
FORMAT = 1


@dataclass(frozen=True)
class Part:
    """分好词的一份：词元在文件里，各篇的长短在手里。

    形状：lengths（词元）、sizes（字节）、hashes 都是 (N,)；空文本没有词元，已不在其中
    """

    path: Path
    lengths: np.ndarray
    sizes: np.ndarray
    hashes: np.ndarray


def encode_documents(documents: list[Document], tokenizer: Tokenizer) -> list[list[int]]:
    """一组文档 → 每篇的编号；全项目成批编码语料只在这一处。

    错误：编码不了时抛 ValueError，说出是哪一篇
    字节级 BPE 什么文本都编得了；按字符的分词器遇到词表里没有的字就不行：
    词表来自训练语料，而验证语料里有生字，是最常见的情形。
    """
    # 成批编码由分词器的多线程完成；我们的进程里没有循环
    try:
        return tokenizer.encode_batch([document.text for document in documents])
    except ValueError:
        # 出错才逐篇重来：成批时分词器不知道文本来自哪里，而用户需要知道。
        for document in documents:
            try:
                tokenizer.encode(document.text)
            except ValueError as error:
                raise ValueError(f"{document.source}: {error}") from None
        raise


def encode_parts(
    documents: Iterable[Document],  # 只走一遍，可以是生成器
    tokenizer: Tokenizer,
    folder: Path,  # 各份的文件放在这里；里面已有的、内容相符的直接用
    *,
    name: str = "part",  # 文件名的前半
    workers: int = 1,  # 1：就在本进程里做，用分词库自己的线程
) -> Iterator[Part]:
    """把文档分词成一份一份，按顺序产生；workers 只影响快慢，不影响任何一个字节。

    错误：编码不了的文档（说出是哪一个）；工作进程意外死掉（多半是内存不够）
    约定：中途出错或被杀，已写好的份留在 folder 里，下次接着用
    """
    # 查参数在调用时做完；以下都是惰性的，要一份才读一份、做一份
    check_int("workers", workers, 1)
    folder.mkdir(parents=True, exist_ok=True)
    # 编号六位：按名字排就是按次序排，人看着也方便
    jobs = (
        (folder / f"{name}-{number:06}.safetensors", group)
        for number, group in enumerate(_boxes(documents, PART_CHARS, PART_DOCUMENTS))
    )
    if workers == 1:
        return (make_part(path, group, tokenizer) for path, group in jobs)
    return in_order(make_part, jobs, tokenizer, workers)


def read_tokens(part: Part) -> np.ndarray:
    """一份的全部词元：(n,)，n = Σ lengths。"""
    # 只取这一个数组；各篇的长短早已在手里
    with safe_open(part.path, framework="numpy") as file:
        tokens: np.ndarray = file.get_tensor("tokens")
    return tokens


def make_part(path: Path, group: list[Document], tokenizer: Tokenizer) -> Part:
    """一份文档 → 一个文件；文件已在、内容相符就不重做。

    约定：同样的文档与分词器，写出的字节总是相同；可以在任何一个进程里做
    错误：编码不了的文档；磁盘写满、目录写不了，都是说出文件名的 ValueError
    """
    # ① 先算 digest：它只看输入，所以不必分词就知道旧文件能不能用
    data = [document.text.encode() for document in group]
    digest = _digest(data, tokenizer)
    # 换了名字、换了进程数、换了一台机器，只要输入相同，digest 就相同
    found = _load(path, digest)
    if found is not None:
        return found
    # ② 分词：再分成小组，库的中间结果（每个词元上百字节）才有界
    arrays = _encode(group, data, tokenizer)
    # ③ 先写在旁边，刷到磁盘再改名：名字一出现，内容就是完整的
    temporary = path.with_name(f"{path.name}.tmp-{secrets.token_hex(4)}")
    try:
        # 只用一个键：safetensors 写几个键时，先后每次都不同，文件就不是逐字节相同了
        save_file(arrays, temporary, metadata={"digest": f"{digest} {_checksum(arrays)}"})
        with open(temporary, "r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    # 磁盘写满时 safetensors 抛的不是 OSError，所以统一成一句话
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise ValueError(f"{path} cannot be written: {error}") from None
    # 词元留在文件里：主进程只要长短与哈希，管道里走的东西才少
    return Part(path, arrays["lengths"], arrays["sizes"], arrays["hashes"])


def _encode(
    group: list[Document], data: list[bytes], tokenizer: Tokenizer
) -> dict[str, np.ndarray]:
    """一份文档 → 四个数组（见文件开头的图）。

    分隔符让模型知道「一篇结束了」：训练时不把两篇硬连成一篇，生成时也懂得停。
    文本里原有的 "<|endoftext|>" 字样按普通文字编码，不会被误当成分隔符。
    """
    dtype = TOKEN_DTYPES["uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32"]
    ending = [] if tokenizer.end_id is None else [tokenizer.end_id]
    tokens: list[np.ndarray] = []  # 每篇一个，空文本的长度是 0
    for box in _boxes(group, GROUP_CHARS, PART_DOCUMENTS):
        # 先存成 int64，核对过最大的编号再变窄
        first = len(tokens)
        for ids in encode_documents(box, tokenizer):
            tokens.append(np.array([*ids, *ending] if ids else [], dtype=np.int64))  # (L,)
        # 转成 uint16 会悄悄丢掉高位，所以先核对。
        largest = max((int(each.max()) for each in tokens[first:] if len(each)), default=0)
        assert largest < tokenizer.vocab_size, (largest, tokenizer.vocab_size)
        tokens[first:] = [each.astype(dtype) for each in tokens[first:]]
    # 空文本没有词元，只剩分隔符的「文档」也没有可学的
    kept = [index for index, each in enumerate(tokens) if len(each)]
    return {
        "tokens": np.concatenate(tokens) if tokens else np.empty(0, dtype),
        "lengths": np.array([len(tokens[index]) for index in kept], dtype=np.int64),
        "sizes": np.array([len(data[index]) for index in kept], dtype=np.int64),
        # 哈希取自文本而不是编号：换了分词器，划分也不变
        "hashes": np.array([text_hash(data[index]) for index in kept], dtype=np.uint64),
    }


def _load(path: Path, digest: str) -> Part | None:
    """读回以前写好的一份；没有、不是这些文档做的、坏了，都返回 None，由调用者重做。"""
    # 先比 digest 再读数组：配方变了时，不必读那几兆字节
    try:
        with safe_open(path, framework="numpy") as file:
            found, _, checksum = (file.metadata() or {}).get("digest", "").partition(" ")
            if found != digest:
                return None
            arrays = {key: file.get_tensor(key) for key in ("tokens", "lengths", "sizes", "hashes")}
    # 截短的文件 safetensors 认得出；没有的键、打不开，也一样是「不能用」
    except (OSError, SafetensorError):
        return None
    # 翻转的比特它却认不出，所以自己再核对一遍
    if checksum != _checksum(arrays):
        return None
    return Part(path, arrays["lengths"], arrays["sizes"], arrays["hashes"])


def _digest(data: list[bytes], tokenizer: Tokenizer) -> str:
    """这些文档用这个分词器做出来的那一份，叫什么。

    每篇前面先写长度：否则「ab」「c」与「a」「bc」连起来一样，digest 就相同了
    """
    # 分词器的指纹：内容相同就是同一个；分隔符另写，因为它由别处约定
    hasher = sha256(f"{FORMAT} {tokenizer.fingerprint} {tokenizer.end_id}".encode())
    for each in data:
        hasher.update(len(each).to_bytes(8, "big"))
        hasher.update(each)
    return hasher.hexdigest()


def _checksum(arrays: dict[str, np.ndarray]) -> str:
    """内容的 SHA-256；次序固定，与字典里的先后无关。"""
    hasher = sha256()
    # 不必写下形状与类型：digest 相同的份，这两样也相同
    for key in sorted(arrays):
        hasher.update(np.ascontiguousarray(arrays[key]).data)
    return hasher.hexdigest()


def _boxes(documents: Iterable[Document], chars: int, number: int) -> Iterator[list[Document]]:
    """按顺序装箱：攒够 chars 个字符或 number 篇就封箱。只看文档，不看进程数。

    >>> [len(box) for box in _boxes([Document("春眠", "a")] * 5, chars=4, number=9)]
    [2, 2, 1]
    """
    box: list[Document] = []
    size = 0
    # 按字符数而不按篇数：一篇可以是一行，也可以是一本书
    for document in documents:
        box.append(document)
        size += len(document.text)
        if size >= chars or len(box) >= number:
            yield box
            box, size = [], 0
    # 最后不满一箱的
    if box:
        yield box


def demo() -> None:
    """同样的文档：一个进程与两个进程逐字节相同；坏掉一份，只重做那一份。"""
    global PART_CHARS
    PART_CHARS = 4000  # 演示用小份，真正的要大上千倍
    documents = [
        Document(f"第 {i} 篇：" + "明月几时有，" * (i % 9 + 1), f"{i}") for i in range(400)
    ]
    tokenizer = Tokenizer.train_bpe((document.text for document in documents), 400)
    # 词表 400：够看出合并，训练又只要一瞬间
    with tempfile.TemporaryDirectory() as name:
        contents, seconds = [], []
        # 各写各的文件夹；比的是文件的字节，不只是词元
        for workers in (1, 2):
            start = time.monotonic()
            parts = list(
                encode_parts(documents, tokenizer, Path(name, str(workers)), workers=workers)
            )
            seconds.append(time.monotonic() - start)
            contents.append([part.path.read_bytes() for part in parts])
        print(f"① {len(documents)} 篇文档装成 {len(parts)} 份，每份约 {PART_CHARS} 个字符")
        print(
            f"   一个进程 {seconds[0]:.2f} 秒，两个 {seconds[1]:.2f} 秒（这么小，全花在启动进程上）"
        )
        assert contents[0] == contents[1]
        print("   各份逐字节相同")

        # 各份首尾相接就是词元流；第 k 篇从前面各篇的长度之和开始
        tokens = np.concatenate([read_tokens(part) for part in parts])
        lengths = np.concatenate([part.lengths for part in parts])
        print(f"② 按编号取回：{len(tokens)} 个词元，第 7 篇是")
        start_of = int(lengths[:7].sum())
        text = tokenizer.decode(tokens[start_of : start_of + lengths[7]], skip_special=True)
        print(f"   {text}")
        assert text == documents[7].text

        # 像磁盘那样悄悄坏掉：大小、时间都看不出来
        print("③ 翻转第 1 份里的一个比特，再来一次")
        # safetensors 只查头部与大小，位翻转要靠我们自己的校验和
        victim = bytearray(contents[0][1])
        victim[-1] ^= 1
        parts[1].path.write_bytes(victim)
        for part in parts:
            os.utime(part.path, (0, 0))  # 记号：重做过的，时间就不是 0 了
        again = list(encode_parts(documents, tokenizer, Path(name, "2")))
        redone = [i for i, part in enumerate(again) if part.path.stat().st_mtime_ns]
        print(f"   重做的是第 {redone} 份，其余直接用")
        assert redone == [1]
        assert [part.path.read_bytes() for part in again] == contents[0]


if __name__ == "__main__":
    run_demo(demo)
