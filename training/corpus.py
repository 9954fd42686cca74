r"""一个字符串怎样说清「用什么文本训练」，又怎样变成一串文档（document）？

语料（corpus）写成一个字符串，叫 spec：

    "python-docs"                 自带的语料，按名字（见 python_library.py）
    "python-docs+python-code"     用 + 连接：先后相接
    "a.txt"、"a.jsonl.gz"         单个文件：txt、md、py、jsonl、parquet，前四种可以再 gzip
    "书/"                         文件夹，含子文件夹
    "书/**/*.md"                  通配；** 匹配任意层文件夹
    "hf:NAME@版本:CONFIG:SPLIT"   Hugging Face 的数据集，边下边读（见 records.py）
    "python-docs+书/"             名字与路径可以混用

    spec ──split_spec─▶ 各部分 ──_locate──▶ 名字或文件表 ──load_corpus──▶ Document, Document, …
                                  │
                                  └──corpus_fingerprint──▶ 这份语料的「指纹」，变了才需重新分词

整条 spec 若本身就是一条存在的路径，就不再按 + 拆开，所以文件名里可以有 +（c++.txt）。

什么算一篇文档：手册的一个条目、一个源文件、一个文本文件、jsonl 的一行。以文档为单位很要紧：
训练集与验证集按文档划分（见 document_split.py），注意力也可以不跨文档。

指纹（fingerprint）回答「语料变了没有」，只看文件的大小与时间，不读内容：

$$\text{fingerprint} = \mathrm{SHA256}(\text{spec},\ \text{Python 版本},\
  \{(\text{路径},\ \text{大小},\ \text{修改时间})\})$$

内存：文件表全在内存里（每个文件一条路径），文本则一篇一篇地来，用完就放掉；
所以语料可以比内存大，只要文件数不到千万。

写错时的原则：说清楚给了什么、允许什么、像哪一个，然后停下。绝不因为「看起来像」就用别的：
训练了几小时才发现语料不对，比马上报错糟得多。

    spec 的哪一部分   怎样认出来                      文档从哪里来
    python-docs       在 CORPORA 里                   python_library.py
    hf:…              以 hf: 开头                     records.py，边下边读
    书/、a.txt、*.md  文件夹、文件、通配，依次试       documents.py，按后缀

指纹认不出网上的数据集有没有变：它只知道写法。用的是哪一版，记在数据目录里，见 dataset_versions.py。
写明了版本（hf:NAME@提交）的，写法里就有它，换了版本指纹也就变了。

常见疑问：
    为什么不用 JSON 或 YAML 描述语料？  一行就够的事，写在命令行上最方便；复杂的先合成一个文件夹。
    文件夹里什么都收吗？               只收认识的后缀，跳过隐藏的文件与 __pycache__。
    文档的先后会影响训练吗？           不会，训练时按窗口打乱；但会影响「切尾」划分出的验证集。
    空文件怎么办？                     略过并警告；全是空的就报错。

试一试：
    python -c "from training.corpus import *; print(corpus_files('.'))"    当前文件夹里会收哪些
    把一个 .txt 存成 GBK 再读：看报错说到第几个字节；加上 errors="replace" 再读一次

论文：语料的构成决定模型 — Gao et al., *The Pile*, arXiv:2101.00027。

改哪里：加一个自带的语料 → python_library.py 的 CORPORA；单个文件怎么读 → documents.py；
        添一种写法（例如「@比例」）→ split_spec 与 _locate。
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import platform
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

from foundation.checks import check_choice, nearest
from foundation.demonstration import run_demo
from training.documents import ENDINGS, Document, is_readable, read_dataset, read_documents
from training.python_library import CORPORA, library_files, walk
from training.records import HUB_MARK, hub_folder

__all__ = [
    "CORPORA",
    "Document",
    "Spec",
    "corpus_files",
    "corpus_fingerprint",
    "corpus_size",
    "load_corpus",
    "spec_name",
    "split_spec",
]

# 一份语料怎样写：见文件开头的表；列表表示先后相接。
Spec: TypeAlias = "str | Path | Sequence[str | Path]"

# spec 里出现这些字符，才可能是通配。
GLOB_CHARACTERS = frozenset("*?[")


def load_corpus(
    spec: Spec,
    *,
    errors: str = "strict",
    text_key: str = "text",
    on_read: Callable[[int], None] | None = None,
) -> Iterator[Document]:
    """按顺序逐个产生语料的文档；内存有界（见 documents.py）。

    用法：for document in load_corpus("python-docs+书/"): print(document.source)

    类型：spec 是字符串、（不按 + 拆开的）Path，或它们的列表；errors 为 "strict" 或 "replace"
          （非法 UTF-8 换成 U+FFFD）；text_key 是 jsonl、parquet 里文本的键名；
          on_read 每读一块调用一次，参数是又读了磁盘上的多少字节（进度条用）
    错误：名字不认识、文件不存在、通配没有匹配、文件夹里没有可读的文件，调用时即抛 ValueError；
          文件内容的错误在读到时抛出；全是空白时在末尾抛出
    警告：有的文件没有内容（其余的有）
    """
    check_choice("errors", errors, ("strict", "replace"))
    parts = [_locate(part) for part in split_spec(spec)]
    # 名字、路径的检查在调用时做完；生成器的函数体要到第一次取值才会执行，错误会冒在别处。
    return _documents(spec_name(spec), parts, errors, text_key, on_read)


def spec_name(spec: Spec) -> str:
    """报错、记录时怎样称呼这份语料。

    >>> spec_name(["a.txt", Path("b.txt")])
    'a.txt+b.txt'
    """
    # 只供人看；程序拿它拆不回去（文件名里可以有 +）
    # 一个路径时就是它自己
    return "+".join(map(str, spec)) if isinstance(spec, (list, tuple)) else str(spec)


def corpus_files(spec: Spec) -> list[Path]:
    """语料涉及的全部文件，顺序与 load_corpus 相同。

    python-docs 是一个模块，不算文件：它随 Python 的版本而变，指纹里另记版本。
    错误：与 load_corpus 调用时相同；文件的内容在这里不看

    >>> corpus_files("python-docs")
    []
    >>> corpus_files("python-code")[0].name
    '__future__.py'
    """
    # 名字与路径混用时，先后与 spec 里写的一致
    files: list[Path] = []
    for part in split_spec(spec):
        located = _locate(part)
        if isinstance(located, list):
            files += located
        elif located == "python-code":
            files += library_files()
        # 本地的数据集文件夹；网上的没有文件，指纹里只有它的名字
        elif located.startswith(HUB_MARK) and (folder := hub_folder(located)) is not None:
            files += walk(folder)
    return files


def corpus_size(spec: Spec) -> int:
    """语料的文件在磁盘上一共多少字节；自带的手册与网上的数据集不算。

    错误：与 corpus_files 相同
    用处：进度条的全长；语料大不大，值不值得用许多进程
    """
    # 压缩的文件按压缩后的大小算，与 on_read 数的一致
    return sum(path.stat().st_size for path in corpus_files(spec))


def corpus_fingerprint(spec: Spec) -> str:
    """语料的指纹：spec、文件的路径、大小、修改时间与 Python 版本的 SHA-256。

    形状：64 个十六进制字符；同一台机器上，语料没变就不变
    不读内容，所以几十 GB 的语料也立刻算完；代价是「改了内容却保持大小和时间」认不出来。
    反过来，只碰了一下修改时间也算「变了」：白做一遍，好过用过期的数据。
    """
    # spec 也算在内：同样的文件换一种写法，文档的先后可能不同
    facts: list[object] = [split_spec(spec)]
    if any(part in CORPORA for part in split_spec(spec)):
        facts.append(platform.python_version())
    for path in corpus_files(spec):
        # 绝对路径：同名的 a.txt 在两个文件夹里是两份语料
        status = path.stat()
        facts.append([str(path.resolve()), status.st_size, status.st_mtime_ns])
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def split_spec(spec: Spec) -> list[str]:
    """按 + 拆开；但文件名里本来就可以有 +（c++.txt），所以先看整个是不是一条路径。

    拆出空的一段（"a++b"）说明那个 + 不是连接号，也当作一条路径，由后面去报「不存在」。

    >>> split_spec("python-docs+python-code")
    ['python-docs', 'python-code']
    >>> split_spec("no/such/c++.txt")
    ['no/such/c++.txt']
    """
    # 列表里的每一项各自拆开，先后不变
    if isinstance(spec, (list, tuple)):
        return [part for each in spec for part in split_spec(each)]
    whole = str(spec)
    if not whole.strip():
        raise ValueError(f"the corpus is empty; give a name ({', '.join(CORPORA)}) or a path")
    parts = [part.strip() for part in whole.split("+")]
    # 三种情形不拆：明说是路径；真有这样一个文件；拆出来有空的一段
    if isinstance(spec, Path) or os.path.exists(whole) or not all(parts):
        return [whole]
    return parts


def _locate(part: str) -> str | list[Path]:
    """一部分 → 自带语料的名字，或按名字排好序的文件表。

    先认名字，再认文件夹、文件、通配；都不是就报错，并猜一个最像的名字。
    ~ 展开成用户的主文件夹：写在引号里时，命令行外壳（shell）不会替我们展开。
    名叫 python-docs 的文件夹要写成 ./python-docs，才不会被当成自带的语料。
    """
    # ① 名字；数据集在不在，要连上网才知道，读的时候再说
    if part in CORPORA or part.startswith(HUB_MARK):
        return part
    # ② 文件夹与文件
    path = Path(part).expanduser()
    if path.is_dir():
        files = [file for file in walk(path) if is_readable(file)]
        if not files:
            raise ValueError(f"the folder {path} holds no file ending in {ENDINGS}")
        return files
    if path.exists():
        if not is_readable(path):
            raise ValueError(f"{path} ends in {path.suffix!r}; corpus files must end in {ENDINGS}")
        return [path]
    # ③ 通配；放在文件之后，因为真有文件名里带方括号的
    if GLOB_CHARACTERS & set(part):
        return _match(str(path))
    # ④ 都不是
    guess = nearest(part, CORPORA)
    raise ValueError(
        f"no such corpus: {part!r} is neither a name ({', '.join(CORPORA)}) nor an existing file, "
        f"folder or pattern in {Path.cwd()}" + (f"; did you mean {guess!r}?" if guess else "")
    )


def _match(pattern: str) -> list[Path]:
    """通配符 → 文件表；** 匹配任意层文件夹。

    匹配到的不认识的文件略过（"书/*" 里难免有封面图），一个也不认识才报错。
    报错时说出当前文件夹：相对路径写错，多半是因为人不在以为的地方。
    """
    matches = [Path(name) for name in glob.glob(pattern, recursive=True)]
    files = [path for path in matches if path.is_file() and is_readable(path)]
    if not files:
        found = f"{len(matches)} others" if matches else "nothing at all"
        raise ValueError(
            f"{pattern!r} matches no file ending in {ENDINGS} (it matches {found}, "
            f"seen from {Path.cwd()})"
        )
    # glob 的顺序由操作系统决定，不排序就不可重现
    return sorted(files, key=Path.as_posix)


def _documents(
    spec: str,
    parts: list[str | list[Path]],
    errors: str,
    text_key: str,
    on_read: Callable[[int], None] | None,
) -> Iterator[Document]:
    """逐篇产生文档，并记下哪些文件没有内容；读到末尾才知道该警告还是该报错。"""
    blank: list[Path] = []
    any_text = False
    # ① 自带的语料一定有内容；文件则要看过才知道
    for part in parts:
        if isinstance(part, str):
            any_text = True
            yield from (
                read_dataset(part, errors=errors, text_key=text_key)
                if part.startswith(HUB_MARK)
                else CORPORA[part]()
            )
            continue
        for path in part:
            # 一个文件可以产生许多篇，所以「空不空」要读完这个文件才知道
            empty = True
            # 出错时说真实的路径，用户才能直接打开那个文件
            for document in read_documents(
                path, str(path), errors=errors, text_key=text_key, on_read=on_read
            ):
                empty = False
                yield document
            if empty:
                blank.append(path)
            any_text = any_text or not empty
    # ② 空文件没有可学的东西，但用户多半不知道它是空的，所以要说
    #    全空是错误（字节数能说明是真空还是只有空白）；部分空是警告
    if not any_text:
        size = sum(path.stat().st_size for path in blank)
        raise ValueError(
            f"the corpus {spec!r} holds no text: {len(blank)} file(s), {size} bytes, all blank"
        )
    if blank:
        warnings.warn(
            f"{len(blank)} file(s) of the corpus {spec!r} hold no text, the first: {blank[0]}",
            stacklevel=2,
        )


def demo() -> None:
    """几种 spec 各得到哪些文档；语料变了指纹就变；写错时得到什么话。

    语料在临时文件夹里现造：四个小文件，其中一张「图片」不该被收进来。
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "c++.txt").write_text("int main() {}\n", encoding="utf-8")
        (folder / "poems").mkdir()
        (folder / "poems" / "b.md").write_text("# 登鹳雀楼\n", encoding="utf-8")
        (folder / "poems" / "a.jsonl").write_text('{"text": "春晓"}\n', encoding="utf-8")
        (folder / "poems" / "cover.png").write_bytes(b"\x89PNG")

        # Document.source 里写的是真实路径，印出来时把临时文件夹换成省略号
        print("① 同一批文件的几种写法：单个文件（名字里有 +）、文件夹、通配、混用")
        for spec in ("c++.txt", "", "poems/*"):
            documents = list(load_corpus(folder / spec))
            sources = [document.source.replace(name, "…") for document in documents]
            print(f"   {'…/' + spec:<12} → {sources}")
        mixed = list(load_corpus(f"python-docs+{folder / 'poems'}"))
        # 混用时手册在前、文件夹在后；文件夹里按名字排，a.jsonl 先于 b.md
        print(f"   混用         → 共 {len(mixed)} 篇，最后一篇 {mixed[-1].text!r}")
        assert [document.text for document in mixed[-2:]] == ["春晓", "# 登鹳雀楼\n"]

        # 大小变了，指纹必变；所以不必等文件系统的时钟走一格
        print("② 指纹：没变就相同，添一个字就不同")
        before = corpus_fingerprint(folder)
        assert corpus_fingerprint(folder) == before
        (folder / "poems" / "b.md").write_text("# 登鹳雀楼！\n", encoding="utf-8")
        changed = corpus_fingerprint(folder) != before
        print(f"   两次相同，改动之后不同：{changed}")
        assert changed

    print("③ 写错时说清楚，而不是换一个猜的")
    # 分别是：拼错的名字、没有匹配的通配、末尾多了一个加号
    for wrong in ("python-doc", "no/such/*.txt", "python-docs+"):
        try:
            load_corpus(wrong)
        except ValueError as error:
            print(f"   {str(error).replace(str(Path.cwd()), '…')}")
        else:
            raise AssertionError(f"{wrong!r} should have been refused")


if __name__ == "__main__":
    run_demo(demo)
