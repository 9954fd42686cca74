r"""第二次训练为什么立刻就能开始？——数据目录记得自己是用什么做成的。

从语料到分片要读文件、训练分词器、分词，少则几秒，多则几小时；而改学习率重跑一次，这些都没变。
所以把「决定结果的一切」散列成一把钥匙（cache key），存进 manifest.json：

$$\text{key} = \mathrm{SHA256}(\text{格式},\ \text{语料指纹},\ \text{分词器},\ f,\ \text{读法})$$

    prepare_data(spec, tokenizer, directory)
         │  钥匙相同，文件也完好 ───────────────▶ 直接打开
         │  钥匙不同（语料、分词器或选项变了）──▶ 重做，完整写好才替换旧的
         │  钥匙相同，文件却坏了 ───────────────▶ 警告，重做
         │  做到一半被杀 ── 做好的份在 NAME.parts ─▶ 从那里接着做，结果逐字节相同
         └  目录里是别的东西 ──────────────────▶ ValueError，绝不动用户的文件

钥匙里少放一样，就会悄悄用上过期的数据；多放一样，不过是白做一遍。宁多勿少。

什么算「决定结果的一切」：
    格式版本   分片的写法或划分规则变了，旧的就不能用
    语料指纹   文件名、大小、修改时间；自带语料再加 Python 的版本（见 corpus.py）
    分词器     现成的给内容的哈希；只给种类时给种类与词表大小
    f          验证集的比例；另给验证语料时，则是那份语料的指纹
    读法       errors 与 text_key：同一个文件，读法不同，文本就不同
    清洗       用了哪些规则、上下限是多少（见 cleaning.py）

而学习率、批次大小、块长、随机种子都不在内：它们不影响词元，换了不必重做。

分词器可以现成给（Tokenizer），也可以只给种类（"characters"、"bpe"），由语料现场训练，
与分片存在同一个目录里，之后用 Tokenizer.load(directory) 取。

第一次做的每一步，与它断了会怎样：

    ① 训练分词器   读一遍语料           断了从头训练；训练好了就留着
    ② 读、清洗     再读一遍，一篇一篇   由下一步拉着走，自己不攒
    ③ 分词         几个进程，一份一份   做好的份留着，下次不再做
    ④ 划分         各份 → 两个分片      在临时目录里；改名之前断了，旧目录原样还在

常见疑问：
    分词器见过验证集，算泄题吗？  按字符的必须见过，否则验证集里会有编不了的字；BPE 只统计
                                  字节对的次数，影响很小，而两边用同一个词表，才可比较。
    两个训练共用一个目录？        可以，只要配方相同；配方不同就会互相覆盖，各用各的目录为好。
    怎样强制重做？                删掉那个目录。
    几个进程一起分词，结果会变吗？  不会，逐字节相同（token_parts.py），所以 workers 不在钥匙里。
    语料大到几小时才分完？        中途断了再跑一次就接着做（unfinished_work.py）。

试一试：fromzero train 两次，看第二次是不是马上开始；用 touch 碰一下语料，再来一次。

论文：内容决定钥匙的思想 — Dolstra et al., *Nix: A Safe and Policy-Free System*, LISA 2004。

改哪里：什么变化算「变了」→ _cache_key；语料指纹怎么算 → corpus.py。
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

from foundation.allocator import trim_freed_memory
from foundation.checks import check_choice, check_float, check_int
from foundation.demonstration import run_demo
from foundation.files import read_manifest, verify_manifest
from tokenization.split_rules import OWN, SPLITS
from tokenization.tokenizer import Tokenizer
from training.cleaning import Cleaner, Cleaning
from training.corpus import Spec, corpus_fingerprint, corpus_size, load_corpus, spec_name
from training.dataset_versions import pinned_once
from training.shards import check_target, warn_if_shared, write_shards
from training.token_shard import KIND, TokenShard
from training.unfinished_work import trained_once, unfinished_work
from training.worker_processes import available_cores

__all__ = ["TOKENIZER_KINDS", "prepare_data", "train_tokenizer"]

# 只给种类时由语料现场训练：前者一字一号，后者是字节级的 BPE。
# bpe:NAME 是用别家的切片规则学的字节级 BPE
TOKENIZER_KINDS = ("characters", "bpe", *(f"bpe:{name}" for name in SPLITS if name != OWN))
# BPE 最多看这么多字节的语料（约数）。
TOKENIZER_BYTES = 1 << 27
# 比这小的语料，一个进程就够快（字节）。
SMALL_CORPUS = 1 << 25
# 分片的写法一变（划分规则、文件格式），就加一：旧目录的钥匙随之失效。
FORMAT = 2


def prepare_data(
    spec: Spec,
    tokenizer: Tokenizer | str,  # 现成的，或种类："characters"、"bpe"
    directory: Path | str,  # 分片与 tokenizer.json 放在这里
    *,
    vocab_size: int = 2048,  # 只对种类 "bpe" 有用
    validation: Spec | None = None,  # 另一份语料；给出时它就是验证集
    val_fraction: float = 0.1,  # 没有另给验证语料时，分出去多少
    errors: str = "strict",  # 读法，见 load_corpus
    text_key: str = "text",
    progress: Callable[[int], None] | None = None,  # 见 write_shards，只在重做时被调用
    verify: bool = True,  # False：直接用旧分片时不再核对 SHA-256
    workers: int | None = 1,  # 几个进程分词；None：看语料大小与核数。不影响结果
    cleaning: Cleaning | None = None,  # 丢掉不该学的文档；默认全留，见 cleaning.py
    watch: Callable[[str, int], None] | None = None,  # (在做什么, 又读了多少字节)，重做时才调用
) -> tuple[TokenShard, TokenShard]:
    """语料 → (训练分片, 验证分片)；上次做好的还能用就直接用。

    用法：train, val = prepare_data("python-docs", "bpe", "runs/a/data", vocab_size=2048)
          tokenizer = Tokenizer.load("runs/a/data")
          batches = TokenBatches(train, batch_size=32, block_size=256, seed=0)

    错误：见 load_corpus 与 write_shards
    警告：验证集与训练集有相同的文档；旧文件损坏，已重做
    """
    cleaning = cleaning or Cleaning()
    # 默认一条规则也不用：要丢什么，由用户说
    # 先查参数与目录：分词几小时之后才发现写错，就太晚了
    check_float("val_fraction", val_fraction, exclusive_minimum=0, exclusive_maximum=1)
    directory = Path(directory)
    check_target(directory)
    if isinstance(tokenizer, str):
        check_choice("tokenizer", tokenizer, TOKENIZER_KINDS)
        check_int("vocab_size", vocab_size, 1)
    if workers is not None:
        check_int("workers", workers, 1)
    # 验证语料也影响结果（词表、验证分片），所以一并算进钥匙
    specs = [spec] if validation is None else [spec, validation]
    # ① 先取指纹再读：若文件在读的时候被改，下次的指纹就不同，自然会重做
    key = _cache_key(
        [corpus_fingerprint(each) for each in specs],
        _identity(tokenizer, vocab_size),
        val_fraction if validation is None else None,
        errors,
        text_key,
        cleaning.rules,
    )
    # ② 不能直接用才重做；重做途中出错，旧目录原样还在
    if not _is_usable(directory, key, verify):
        _make(
            spec,
            validation,
            tokenizer,
            directory,
            key=key,
            vocab_size=vocab_size,
            val_fraction=val_fraction,
            cleaning=cleaning,
            reading={"errors": errors, "text_key": text_key},
            progress=progress,
            watch=watch or (lambda doing, n_bytes: None),
            workers=_choose_workers(workers, specs),
        )
    # ③ 刚写好或刚核对过，不必再算一遍 SHA-256
    train = TokenShard.open(directory, "train", verify=False)
    val = TokenShard.open(directory, "val", verify=False)
    # 用完请 close()，或放进 with；进程结束时也会自然关闭
    return train, val


def _make(
    spec: Spec,
    validation: Spec | None,
    tokenizer: Tokenizer | str,
    directory: Path,
    *,
    key: str,
    vocab_size: int,
    val_fraction: float,
    cleaning: Cleaning,
    reading: dict[str, Any],  # errors 与 text_key
    progress: Callable[[int], None] | None,
    watch: Callable[[str, int], None],
    workers: int,
) -> None:
    """真正去做：训练分词器、清洗、分词、划分；断了再来，从半成品接着做。"""
    # 记下用户写的，而不是钉住了版本的
    name = spec_name(spec)
    with unfinished_work(directory) as parts:
        # ① 网上的数据集钉住一版：下面要读两遍，断了还要接着读
        #    问一次就记下；没有网上的语料，这一步什么也不做
        specs = [spec] if validation is None else [spec, validation]
        specs, versions = pinned_once(parts, key, specs)
        # 往下用的都是钉住了的写法；没有可钉的，就是原来的
        spec, validation = specs[0], None if validation is None else specs[1]
        # ② 分词器；语料读两遍（这里一遍，分词一遍），好过把它整个放进内存
        if isinstance(tokenizer, str):
            kind, learn = tokenizer, partial(watch, "learning the tokenizer")
            tokenizer = trained_once(
                parts,
                key,
                lambda: train_tokenizer(
                    kind, specs, vocab_size, cleaning, on_read=learn, **reading
                ),
            )
            # 学词表时内存最多；不还给系统，分词的几个小时里它就一直占着
            trim_freed_memory()
        # ③ 训练集先过，验证集后过同一个 cleaner：与训练集相同的，也算重复
        cleaner = Cleaner(cleaning)
        how = {**reading, "on_read": partial(watch, "tokenizing")}
        documents = cleaner(load_corpus(spec, **how))
        held_out = None if validation is None else cleaner(load_corpus(validation, **how))
        # ④ 丢了几篇要读完才知道，所以 late_facts 是函数
        write_shards(
            documents,
            tokenizer,
            directory,
            val_fraction=val_fraction,
            val_documents=held_out,
            # 钥匙给程序认，其余给人查：哪份语料、网上的是哪一版、丢过什么
            # 没有网上的数据集，revisions 就是空的
            facts={
                "key": key,
                "corpus": name,
                "revisions": versions,
                "cleaning": cleaning.rules,
            },
            late_facts=lambda: {"cleaned": cleaner.report.to_dict()},
            progress=progress,
            workers=workers,
            parts_in=parts,
        )


def _is_usable(directory: Path, key: str, verify: bool) -> bool:
    """目录里的分片是不是用同样的配方做的，而且完好。

    钥匙写在 manifest 里，所以「查钥匙」只读一个小文件；相同才值得去核对大文件的 SHA-256。
    """
    try:
        manifest = read_manifest(directory, kind=KIND)
    except ValueError:
        # 没有，或者是空目录；别的东西已被 check_target 拒绝
        return False
    # 配方变了是常事，不必警告
    if manifest.get("key") != key:
        return False
    if verify:
        try:
            verify_manifest(directory, kind=KIND)
        # 文件坏了却不是常事（磁盘？别的程序改过？），所以要说一声，再重做
        except ValueError as error:
            warnings.warn(f"{error}; the shards are written again", stacklevel=3)
            return False
    # 泄题不因为是旧分片就不算；每次都提醒
    warn_if_shared(manifest, directory)
    return True


def _choose_workers(workers: int | None, specs: Sequence[Spec]) -> int:
    """几个进程：给了就用给的；没给，小语料在本进程里做，大的用上所有的核。

    启动一个进程要半秒上下，分词几兆字节也不过如此，小语料不值得
    """
    if workers is not None:
        return workers
    # 自带的语料（python-docs）算作 0：它们只有几十兆
    # 压缩的文件按压缩后的大小算，只会少估，多等一会儿而已
    # stat 只问文件系统，不读内容，所以几千个文件也是一瞬间
    size = sum(map(corpus_size, specs))
    return available_cores() if size >= SMALL_CORPUS else 1


def _cache_key(*facts: object) -> str:
    """把任意多的事实变成一把定长的钥匙；JSON 使写法唯一，散列使长度固定。

    >>> _cache_key("语料", 0.1) == _cache_key("语料", 0.1)
    True
    >>> _cache_key("语料", 0.1) == _cache_key("语料", 0.2)
    False
    """
    return sha256(json.dumps([FORMAT, *facts]).encode()).hexdigest()


def _identity(tokenizer: Tokenizer | str, vocab_size: int) -> list[object]:
    """分词器的身份。只给种类时它由语料决定，而语料的指纹已在钥匙里。

    >>> _identity("bpe", 2048)
    ['bpe', 2048]
    >>> _identity("characters", 2048)      # 一字一号，词表大小由语料决定，给了也不看
    ['characters', None]
    """
    # 现成的分词器：内容相同就是同一个，与文件名、存放处无关
    if isinstance(tokenizer, Tokenizer):
        return [tokenizer.fingerprint]
    return [tokenizer, None if tokenizer == "characters" else vocab_size]


def train_tokenizer(
    kind: str, specs: Sequence[Spec], vocab_size: int, cleaning: Cleaning, **how: Any
) -> Tokenizer:
    """用全部语料（训练与验证）训练分词器；逐篇读取，不把语料整个放进内存。

    什么语料要看多少：

        characters   全部            字的集合，内存里只有几万个字
        bpe，小语料  全部
        bpe，大语料  隔几篇取一篇    约 TOKENIZER_BYTES 字节

    大语料上的 BPE 只看一部分：数字节对的次数，一亿字节已经很准；而每个不同的片段都要记在
    内存里。隔几篇取一篇，而不是只取开头：语料的前后常常不是一个样子。字符级的必须看全部，
    少看一个字，就有文本编不了。

    公式：隔 ⌈语料的字节数 / TOKENIZER_BYTES⌉ 篇取一篇
    """
    # 另一个 cleaner：它的报告不要，分词那一遍会再数一次
    cleaner = Cleaner(cleaning)
    # 生成器：分词器要一篇，才读一篇
    documents = cleaner(document for spec in specs for document in load_corpus(spec, **how))
    # 字的集合很小，所以不必隔着取
    # 少看一篇，就可能少一个字，那一篇便编不了
    if kind == "characters":
        return Tokenizer.characters(document.text for document in documents)
    every = -(-sum(map(corpus_size, specs)) // TOKENIZER_BYTES)
    texts = (document.text for document in islice(documents, 0, None, max(every, 1)))
    # 大小不知道的语料（网上的数据集）没法隔着取，就只取开头的那么多
    # 两种都确定：同样的语料，得到同样的词表
    # "bpe" 之后没有写规则，就是自己的那一条
    split = kind.partition(":")[2] or OWN
    return Tokenizer.train_bpe(_up_to(texts, TOKENIZER_BYTES), vocab_size, split=split)


def _up_to(texts: Iterable[str], limit: int) -> Iterator[str]:
    """开头的若干篇，合起来约 limit 个字符。

    总是整篇整篇的：半篇的末尾是半个词，会学出没用的词元

    >>> list(_up_to(["春眠", "不觉", "晓"], 3))
    ['春眠', '不觉']
    """
    total = 0
    for text in texts:
        yield text
        total += len(text)
        if total >= limit:
            return


def demo() -> None:
    """同一份语料准备四次：第一次、没变、换分词器、添文件。

    「重做了没有」不靠计时来猜，而看 manifest.json 的修改时间，所以每次演示的输出都相同。
    """
    with tempfile.TemporaryDirectory() as name:
        source, folder = Path(name, "corpus"), Path(name, "data")
        manifest = folder / "manifest.json"
        source.mkdir()
        # 把手册的每个条目存成一个文件，当作「用户自己的文件夹」
        for document in load_corpus("python-docs"):
            file = source / f"{document.source.split(':')[1]}.txt"
            file.write_text(document.text, encoding="utf-8", newline="\n")

        # 准备一次，说出是重做还是直接用，返回训练分片内容的 SHA-256
        def prepare(what: str, kind: str) -> str:
            before = manifest.stat().st_mtime_ns if manifest.exists() else 0
            train, val = prepare_data(source, kind, folder, vocab_size=512)
            made = "直接打开" if manifest.stat().st_mtime_ns == before else "重新分词"
            with train, val:
                print(
                    f"   {what} → {made}：训练 {len(train):>7,}，验证 {len(val):>6,} 词元；"
                    f"词表 {train.vocab_size:>3}，{train.bytes_per_token:.2f} 字节/词元"
                )
                return f"{train.fingerprint}"

        print("① 第一次要训练分词器、分词；第二次钥匙没变，直接打开")
        first = prepare("第一次　　", "bpe")
        again = prepare("什么都没变", "bpe")
        assert first == again
        print("② 换了分词器，或语料多了一个文件：钥匙变了，重做")
        other = prepare("换成按字符", "characters")
        (source / "new.txt").write_text("A new page.\n" * 400, encoding="utf-8", newline="\n")
        more = prepare("多一个文件", "characters")
        # 三次重做，三份不同的内容
        assert len({first, other, more}) == 3
        # 写分片要替换整个目录；把目录写成自己的文稿文件夹，是很容易犯的错
        print("③ 目录里若是别人的文件，绝不覆盖")
        try:
            prepare_data("python-docs", "characters", source)
        except ValueError as error:
            print(f"   {str(error).replace(name, '…')}")
        else:
            raise AssertionError("a folder with the user's files must be refused")


if __name__ == "__main__":
    run_demo(demo)
