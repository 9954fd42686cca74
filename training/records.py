r"""语料常存成一行一行的记录（record）：jsonl、parquet、Hugging Face 的 datasets；文本在哪一栏？

三种来源，一个样子——逐行给出（行号，记录），再从记录里取出文本：

    data.jsonl      {"text": "春眠…"}  ──json──────────┐
    data.parquet    │ text │ url │     ──pyarrow───────┼─▶ (行号, 记录) ──text_of_record──▶ 文本
    hf:NAME:CONFIG  网上的数据集        ──streaming─────┘

parquet 是按栏（column）存的：只读 text 那一栏，别的栏（网址、标签）碰都不碰，

$$\text{读的字节} = \frac{\text{text 栏的大小}}{\text{各栏之和}} \times \text{文件大小}$$

而且一次只读 ROWS 行，所以文件多大都行。datasets 用流式（streaming）：边下边读，不先存成一份。

hf: 的写法，三段用冒号隔开，后两段可以省：

    hf:roneneldan/TinyStories              默认的配置，train 那一份
    hf:wikitext:wikitext-2-raw-v1          指定配置（config）
    hf:wikitext:wikitext-2-raw-v1:test     再指定哪一份（split）
    hf:roneneldan/TinyStories::validation  默认的配置，validation 那一份
    hf:roneneldan/TinyStories@main::test   @ 后面是分支、标签或提交，见 dataset_versions.py
    hf:./my_dataset                        自己的文件夹，不需要网络

绝不执行数据集里带的代码：老式的数据集附一个 .py 脚本，运行它就等于运行陌生人的程序。

一步一步看，一个两行两栏的 parquet，取 text：

    文件    [行组 0: text 栏 │ url 栏] [行组 1: text 栏 │ url 栏] [表头]
    读        ▲                           ▲                        ▲ 先读表头，知道栏在哪里
    给出    (1, {"text": …})            (2, {"text": …})           url 栏一个字节也没有读

行号从 1 数起，跨行组连着数：报错时说「第几行」，你在别的程序里也找得到那一行。

常见疑问：
    版本写在哪里？        名字后面，@ 与提交（或标签、分支）；几年后还读得到同样的文本。
    没有网怎么办？        先在有网的机器上存成 parquet 或 jsonl，拷过来当普通文件用。
    网上的数据集变了呢？  准备数据时钉住一版，并记下是哪一版，见 dataset_versions.py。
    文本不叫 text？       --text-key 换成那一栏的名字；没有这一栏会列出有哪些。
    pyarrow 装不上？      jsonl 什么都不用装；parquet 只是省磁盘、少读几栏。
    jsonl 与 parquet 谁快？  只取一栏时 parquet 快；jsonl 每行都要解析全部的键。
    为什么 null 不当作空？  空文本是「这一篇没有内容」，null 多半是「抽取失败」，两回事。
    一条记录有好几段？    先合成一栏：怎样拼（换行？标题？）是你的决定，不该由程序猜。

论文：按栏存储 — Melnik et al., *Dremel*, VLDB 2010；数据集库 — Lhoest et al., arXiv:2109.02846。

改哪里：再加一种来源 → 写一个产生（行号，记录）的函数；取文本时做别的检查 → text_of_record。
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from foundation.checks import nearest
from foundation.demonstration import run_demo

__all__ = ["HUB_MARK", "hub_folder", "hub_rows", "parquet_rows", "split_hub", "text_of_line"]
__all__ += ["text_of_record"]

# 语料的写法里，以它开头的是 Hugging Face 的数据集。
HUB_MARK = "hf:"
# parquet 一次读多少行：行组（row group）再大，内存里也只有这么多行。
ROWS = 1024
# 缺了库时的话：这两个库又大又不是人人要用，所以不是必装的。
MISSING = "{what} needs {library}, which is not installed: pip install 'llm-from-zero[data]'"


def text_of_record(record: Any, where: str, errors: str, text_key: str) -> str:
    """从一条记录里取出文本；毛病各有各的话，都说出在哪里。

    >>> text_of_record({"id": 7, "text": "春眠不觉晓"}, "line 1 of a.jsonl", "strict", "text")
    '春眠不觉晓'
    >>> text_of_record({"txt": "春"}, "line 2 of a.jsonl", "strict", "text")
    Traceback (most recent call last):
    ValueError: line 2 of a.jsonl has no 'text'; its keys: txt; did you mean text_key='txt'?
    >>> text_of_record({"text": None}, "line 3 of a.jsonl", "strict", "text")
    Traceback (most recent call last):
    ValueError: line 3 of a.jsonl: 'text' must be a string, got null
    """
    # 宁可停下也不跳过：跳过了多少没人知道，训练照样开始、损失照样下降
    # ① 键：没有就列出有哪些，并猜一个
    if text_key not in record:
        raise ValueError(f"{where} has no {text_key!r}; its keys: {_keys(record, text_key)}")
    # ② 值：null 多半是抽取正文失败留下的，当作空文本会掩盖它
    text = record[text_key]
    if not isinstance(text, str):
        kind = "null" if text is None else type(text).__name__
        raise ValueError(f"{where}: {text_key!r} must be a string, got {kind}")
    return _without_lone_surrogates(text, where, errors)


def _keys(record: Mapping[str, Any] | list[str], text_key: str) -> str:
    """有哪些键，像哪一个。"""
    guess = nearest(text_key, record)
    return ", ".join(record) + (f"; did you mean text_key={guess!r}?" if guess else "")


def text_of_line(line: str, where: str, errors: str, text_key: str) -> str:
    """jsonl 的一行 → 文本。

    >>> text_of_line('["春"]', "line 4 of a.jsonl", "strict", "text")
    Traceback (most recent call last):
    ValueError: line 4 of a.jsonl must be an object such as {"text": "…"}, got list
    """
    # ① 语法；先去掉行尾，出错时的列号才指着这一行
    try:
        record: Any = json.loads(line.rstrip("\r\n"))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{where} is not valid JSON: {error.msg} at column {error.colno}"
        ) from None
    # 语法没错也可能读不了：方括号嵌套上千层，或一个整数有上万位
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{where} is not usable JSON: {error}") from None
    # ② 形状：一行必须是一个对象
    if not isinstance(record, dict):
        raise ValueError(
            f'{where} must be an object such as {{"{text_key}": "…"}}, got {type(record).__name__}'
        )
    return text_of_record(record, where, errors, text_key)


def _without_lone_surrogates(text: str, where: str, errors: str) -> str:
    r"""JSON 能写出 "\ud800" 这样的半个字符（lone surrogate），它没有 UTF-8 编码。

    多半是别的程序把一个表情符号从中间截断了。分词器无从处理它，所以在这里就认出来：
    这时还知道是哪个文件的第几行。

    >>> _without_lone_surrogates("好\ud83d", "line 1 of a.jsonl", "replace")
    '好�'
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        # 严格时报错并写出它的码位，否则换成 U+FFFD；两种都不会让它混进语料
        if errors == "strict":
            raise ValueError(
                f"{where} holds a lone surrogate U+{ord(text[error.start]):04X} at character "
                f"{error.start}; repair the escape, or ask for errors='replace'"
            ) from None
        # UTF-16 里代理项（surrogate）成对才算一个字符，落单的解码时换成 U+FFFD
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


# ── parquet ─────────────────────────────────────────────────────────────────


def parquet_rows(
    path: Path, text_key: str, on_read: Callable[[int], None] | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """一个 parquet 文件的（行号，记录），行号从 1 数起；记录里只有 text_key 一栏。

    错误：没装 pyarrow；不是 parquet、截短了、损坏；没有这一栏（列出有哪些）
    on_read：读完一个行组调用一次，参数是它在文件里约占多少字节（进度条用）
    """
    try:
        import pyarrow.parquet as parquet
        from pyarrow.lib import ArrowException
    except ImportError:
        raise ValueError(MISSING.format(what=path, library="pyarrow")) from None
    # 行号跨行组连着数；出错时它就是「读到了哪里」
    number = 0
    try:
        # buffer_size：一页一页地读；不给它，pyarrow 会把整个行组的那一栏一次读进来
        with parquet.ParquetFile(path, buffer_size=1 << 16, pre_buffer=False) as file:
            # ① 先看有没有这一栏：表头就在文件末尾，不必读数据
            names = file.schema_arrow.names
            if text_key not in names:
                raise ValueError(f"{path} has no {text_key!r}; its keys: {_keys(names, text_key)}")
            share = path.stat().st_size / max(file.num_row_groups, 1)
            # ② 一个行组接一个行组，组内再分小批
            for group in range(file.num_row_groups):
                for batch in file.iter_batches(ROWS, row_groups=[group], columns=[text_key]):
                    for value in batch.column(0).to_pylist():
                        number += 1
                        yield number, {text_key: value}
                if on_read is not None:
                    on_read(int(share))
    # 表头坏了、一页坏了、压缩坏了：都在这里；
    # pyarrow 的错误有的是 OSError，有的是它自己的；都变成一句说出文件名的话
    except (OSError, ArrowException) as error:
        raise ValueError(
            f"{path} cannot be read as parquet after row {number}: {_first_line(error)}"
        ) from None


# ── Hugging Face datasets ───────────────────────────────────────────────────


def hub_rows(spec: str, text_key: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """hf:NAME[@版本][:CONFIG][:SPLIT] 的（行号，记录），边下边读，不存成一份。

    错误：写法不对、没装 datasets、没有网、没有这个数据集或这一份：调用时即抛 ValueError；
          读到一半断网，也是 ValueError，说出读到第几行
    """
    name, version, config, split = split_hub(spec)
    try:
        import datasets
    except ImportError:
        raise ValueError(MISSING.format(what=spec, library="datasets")) from None
    # ① 本地与网上是同一个函数；本地的文件夹要先看存不存在，否则它会去网上找同名的
    if name.startswith((".", "/", "~")) and not Path(name).expanduser().exists():
        raise ValueError(f"{spec}: there is no folder {name}")
    # ② 库在内部抛出各种各样的异常（网络、配置、权限），用户要的只是一句话
    try:
        rows = datasets.load_dataset(
            str(Path(name).expanduser()) if Path(name).expanduser().exists() else name,
            config,
            split=split,
            streaming=True,
            revision=version,
        )
    except Exception as error:
        hint = ""
        # 把 split 写在了 config 的位置，是最常见的笔误
        if config in ("train", "validation", "test") and split == "train":
            hint = f"; a split follows a second colon: {HUB_MARK}{name}::{config}"
        raise ValueError(
            f"{spec} cannot be loaded: {_first_line(error)}{hint}; without a network, use a local "
            f"folder ({HUB_MARK}./folder), or parquet or jsonl files"
        ) from None
    # ③ 先看有没有这一栏；有的来源要读了第一行才知道，那时由 text_of_record 去查
    known = rows.column_names
    if known and text_key not in known:
        raise ValueError(f"{spec} has no {text_key!r}; its keys: {_keys(known, text_key)}")
    return _rows_of(rows, spec)


def _rows_of(rows: Any, spec: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """逐行取；取下一行时出的错（断网、坏文件）说出是第几行之后。"""
    # 与 parquet_rows 一样从 1 数起
    number = 0
    stream = iter(rows)
    while True:
        # 只包住「取」，不包住 yield：调用者处理这一行时的错，不是数据集的错
        try:
            row = next(stream, None)
        except Exception as error:
            raise ValueError(
                f"{spec} cannot be read after row {number}: {_first_line(error)}"
            ) from None
        if row is None:
            return
        number += 1
        yield number, row


def hub_folder(spec: str) -> Path | None:
    """hf:./folder 里的本地文件夹；网上的数据集返回 None。"""
    # 指纹要看本地文件的大小与时间；网上的看不到，只能记名字
    path = Path(split_hub(spec)[0]).expanduser()
    return path if path.is_dir() else None


def split_hub(spec: str) -> tuple[str, str | None, str | None, str]:
    r"""拆成 (NAME, 版本, CONFIG, SPLIT)；省略的版本、配置是 None，省略的份是 train。

    >>> split_hub("hf:wikitext@v1:wikitext-2-raw-v1:test")
    ('wikitext', 'v1', 'wikitext-2-raw-v1', 'test')
    >>> split_hub("hf:roneneldan/TinyStories")
    ('roneneldan/TinyStories', None, None, 'train')
    >>> split_hub(r"hf:C:\data\mine::test")      # Windows 的盘符不是分隔
    ('C:\\data\\mine', None, None, 'test')
    """
    pieces = spec.removeprefix(HUB_MARK).split(":")
    # 冒号在 Windows 的路径里也有，所以先把盘符接回去
    # 盘符：单独一个字母，后面跟着斜杠
    if len(pieces) > 1 and len(pieces[0]) == 1 and pieces[1][:1] in ("\\", "/"):
        pieces[:2] = [":".join(pieces[:2])]
    # 不够三段的补空的；多于三段的多半是把路径写错了
    name, config, split = [*pieces, "", ""][:3]
    # 没有写版本，就是最新的那一版
    version = ""
    # 真有这样一个文件夹，@ 就是它名字的一部分
    if not Path(name).expanduser().exists():
        name, _, version = name.partition("@")
    if len(pieces) > 3 or not name:
        raise ValueError(f"{spec!r} must be {HUB_MARK}NAME, {HUB_MARK}NAME:CONFIG:SPLIT")
    return name, version or None, config or None, split or "train"


def _first_line(error: Exception) -> str:
    """库的报错常有好几行，第一行就够；没有话的，说出它的类型。"""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def demo() -> None:
    """各种毛病的记录得到什么话；一个自己写的 parquet 文件，只读一栏。"""
    # 六行里只有第一行是好的
    # 六种写法都在一屏里看完
    # 每一种毛病都有自己的话，不混成一句「格式错误」
    print("① 好的一行，和五种毛病")
    lines = ('{"text": "春眠"}', '{"txt": "春眠"}', '{"text": null}', '{"text": ', "[1]", '"春"')
    for number, line in enumerate(lines, 1):
        try:
            print(f"   {line:<18} → {text_of_line(line, f'line {number}', 'strict', 'text')}")
            assert number == 1
        except ValueError as error:
            print(f"   {line:<18} → {error}")
            assert number > 1
    # 只拆写法，不连网
    print("② hf: 的写法")
    for spec in ("hf:wikitext", "hf:wikitext:wikitext-2-raw-v1:test", "hf:./mine::validation"):
        print(f"   {spec:<36} → {split_hub(spec)}")
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    # pyarrow 不是必装的；没有它，其余的演示照样有意义
    except ImportError:
        # 演示不因为少一个选装的库而失败
        print("③ 没有安装 pyarrow，parquet 的演示略过")
        return
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "poems.parquet")
        # 网址一栏又长又不可压缩，而我们一个字节也不读它
        table = {"text": ["春眠不觉晓"] * 3, "url": [f"https://a.b/{i:0200}" for i in range(3)]}
        parquet.write_table(pyarrow.table(table), path)
        rows = list(parquet_rows(path, "text"))
        print(f"③ parquet：{len(rows)} 行，第 3 行 {rows[2]}")
        assert rows[2] == (3, {"text": "春眠不觉晓"})
        try:
            list(parquet_rows(path, "txt"))
        except ValueError as error:
            print(f"   {str(error).replace(name, '…')}")
        else:
            raise AssertionError("a missing column must be refused")


if __name__ == "__main__":
    run_demo(demo)
