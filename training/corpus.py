r"""没有网络、没有下载，拿什么训练？——每个 Python 自带的说明书和源代码。

语料（corpus）写成一个字符串（spec），这里把它变成一串文档（document）：

    "python-docs"                 语言参考手册：pydoc_data.topics，英文
    "python-code"                 标准库的 .py 源代码，英文与 Python
    "python-docs+python-code"     用 + 连接：先后相接
    "书/*.txt"、"书/"、"a.jsonl"   自己的文件：通配、文件夹（含子文件夹）、单个文件

    spec ──_split──▶ 各部分 ──_locate──▶ 名字或文件表 ──load_corpus──▶ Document, Document, …
                                  │
                                  └──corpus_fingerprint──▶ 这份语料的「指纹」，变了才需重新分词

以文档为单位很要紧：训练集与验证集按文档划分，划分的依据只是文档自己的文本，

$$\mathrm{val} \iff \mathrm{SHA256}(\text{text})_{0..63} < f \cdot 2^{64}$$

（见 shards.py），同一篇文章绝不会一半在训练集、一半在验证集。

源代码里不收的：测试、第三方代码（vendored）、机器生成的编码表、lib2to3、只在某台机器上有的模块。
它们或重复、或不是人写给人看的、或使两台机器的语料不同。顺序按名字排，所以是确定的。

论文：代码混入文本能提升推理 — Aryabumi et al., *To Code, or Not To Code?*, arXiv:2408.10914。

改哪里：加一个自带语料 → CORPORA 里添一行；源代码收哪些 → LEFT_OUT 与 _is_wanted；
        单个文件怎么读 → documents.py。
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import platform
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from foundation.checks import check_choice, nearest
from foundation.demonstration import run_demo
from training.documents import READERS, Document, read_documents

__all__ = ["CORPORA", "Document", "corpus_files", "corpus_fingerprint", "load_corpus"]

# 标准库里不收的文件夹与模块。
LEFT_OUT = frozenset(
    {
        *("test", "tests", "idle_test"),  # 测试：断言罗列，少有解释
        *("ensurepip", "_vendor", "_vendored", "_bundled"),  # 别人的代码
        *("site-packages", "dist-packages"),  # 装进来的包
        *("pydoc_data",),  # 已经是 python-docs
        *("lib2to3",),  # 新版 Python 已删去；收了它，各版本的语料就差得更远
    }
)
# 编码表（cp1252.py 等）由脚本生成，几百行只是「字节 → 字符」；文件开头自己写明了。
GENERATED_MARK = b"gencodec"
GLOB_CHARACTERS = frozenset("*?[")


def load_corpus(
    spec: str | Path, *, errors: str = "strict", text_key: str = "text"
) -> Iterator[Document]:
    """按顺序逐个产生语料的文档；内存有界（见 documents.py）。

    类型：errors 为 "strict" 或 "replace"（非法 UTF-8 换成 U+FFFD）；text_key 是 jsonl 的键名
    错误：名字不认识、文件不存在、通配没有匹配、文件夹里没有可读的文件，调用时即抛 ValueError；
          文件内容的错误在读到时抛出；全是空白时在末尾抛出
    """
    check_choice("errors", errors, ("strict", "replace"))
    parts = [_locate(part) for part in _split(spec)]
    # 检查在调用时做完；生成器的函数体要到第一次取值才会执行。
    return _documents(str(spec), parts, errors, text_key)


def corpus_files(spec: str | Path) -> list[Path]:
    """语料涉及的全部文件；python-docs 是一个模块，不算文件。"""
    files: list[Path] = []
    for part in _split(spec):
        located = _locate(part)
        if isinstance(located, list):
            files += located
        elif located == "python-code":
            files += library_files()
    return files


def corpus_fingerprint(spec: str | Path) -> str:
    """语料的指纹：文件名、大小、修改时间与 Python 版本的 SHA-256。

    不读内容，所以几十 GB 的语料也立刻算完；代价是「改了内容却保持大小和时间」认不出来。
    """
    facts: list[object] = [_split(spec)]
    if any(part in CORPORA for part in _split(spec)):
        facts.append(platform.python_version())
    for path in corpus_files(spec):
        status = path.stat()
        facts.append([str(path.resolve()), status.st_size, status.st_mtime_ns])
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def library_files() -> list[Path]:
    """标准库中收进 python-code 的源文件，按名字排序。

    错误：标准库在 zip 里，或只有 .pyc 时，抛 ValueError 并说出找过哪里
    """
    root = _library_root()
    names = sys.stdlib_module_names
    files = []
    for path in _walk(root, LEFT_OUT):
        # 只收标准库自己的顶层模块：发行版添的 sitecustomize、_sysconfigdata_… 各机不同。
        top = path.relative_to(root).parts[0].removesuffix(".py")
        if path.suffix == ".py" and top in names and _is_wanted(path):
            files.append(path)
    if not files:
        raise ValueError(
            f"corpus 'python-code' needs the library's sources, but {root} has no .py files "
            "(zipped or compiled only); install the full Python, or train on files of your own"
        )
    return files


def _library_root() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _is_wanted(path: Path) -> bool:
    if path.parent.name != "encodings":
        return True
    with open(path, "rb") as file:
        return GENERATED_MARK not in file.read(400)


def _python_docs() -> Iterator[Document]:
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise ValueError(
            f"corpus 'python-docs' needs the module pydoc_data, which {sys.executable} does not "
            "have; install the full Python, or train on files of your own"
        ) from None
    for name in sorted(topics):
        yield Document(topics[name], f"python-docs:{name}")


def _python_code() -> Iterator[Document]:
    root = _library_root()
    for path in library_files():
        label = f"python-code:{path.relative_to(root).as_posix()}"
        yield from read_documents(path, label)


# 名字 → 怎样产生文档。加一个自带的语料只需在此添一行。
CORPORA: dict[str, Callable[[], Iterator[Document]]] = {
    "python-docs": _python_docs,
    "python-code": _python_code,
}


def _split(spec: str | Path) -> list[str]:
    """按 + 拆开；但文件名里本来就可以有 +（c++.txt），所以先看整个是不是一条路径。"""
    whole = str(spec)
    if not whole.strip():
        raise ValueError(f"the corpus is empty; give a name ({', '.join(CORPORA)}) or a path")
    parts = [part.strip() for part in whole.split("+")]
    if isinstance(spec, Path) or os.path.exists(whole) or not all(parts):
        return [whole]
    return parts


def _locate(part: str) -> str | list[Path]:
    """一部分 → 自带语料的名字，或按名字排好序的文件表。"""
    if part in CORPORA:
        return part
    path = Path(part).expanduser()
    if path.is_dir():
        files = [file for file in _walk(path, frozenset()) if file.suffix.lower() in READERS]
        if not files:
            raise ValueError(f"the folder {path} holds no file ending in {', '.join(READERS)}")
        return files
    if path.exists():
        if path.suffix.lower() not in READERS:
            raise ValueError(
                f"{path} ends in {path.suffix!r}; corpus files must end in {', '.join(READERS)}"
            )
        return [path]
    if GLOB_CHARACTERS & set(part):
        return _match(str(path))
    guess = nearest(part, CORPORA)
    raise ValueError(
        f"no such corpus: {part!r} is neither a name ({', '.join(CORPORA)}) nor an existing file, "
        f"folder or pattern in {Path.cwd()}" + (f"; did you mean {guess!r}?" if guess else "")
    )


def _match(pattern: str) -> list[Path]:
    """通配符 → 文件表；** 匹配任意层文件夹。"""
    matches = [Path(name) for name in glob.glob(pattern, recursive=True)]
    files = [path for path in matches if path.is_file() and path.suffix.lower() in READERS]
    if not files:
        found = f"{len(matches)} others" if matches else "nothing at all"
        raise ValueError(
            f"{pattern!r} matches no file ending in {', '.join(READERS)} (it matches {found}, "
            f"seen from {Path.cwd()})"
        )
    return sorted(files, key=Path.as_posix)


def _walk(root: Path, left_out: frozenset[str]) -> Iterator[Path]:
    """文件夹里的全部文件，按相对路径排序；不进隐藏文件夹（.git、.venv）与 __pycache__。

    操作系统给出的顺序因机器而异，不排序就没有可重现的语料。
    """
    found: list[Path] = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [
            name
            for name in subfolders
            if name not in left_out and name != "__pycache__" and not name.startswith(".")
        ]
        found += [
            Path(folder, name)
            for name in names
            if name.removesuffix(".py") not in left_out and not name.startswith(".")
        ]
    yield from sorted(found, key=lambda path: path.relative_to(root).as_posix())


def _documents(
    spec: str, parts: list[str | list[Path]], errors: str, text_key: str
) -> Iterator[Document]:
    blank: list[Path] = []
    any_text = False
    for part in parts:
        if isinstance(part, str):
            any_text = True
            yield from CORPORA[part]()
            continue
        for path in part:
            empty = True
            for document in read_documents(path, str(path), errors=errors, text_key=text_key):
                empty = False
                yield document
            if empty:
                blank.append(path)
            any_text = any_text or not empty
    # 空文件没有可学的东西，但用户多半不知道它是空的，所以要说。
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
    """量一量自带的语料，看一篇，再看几种写错的 spec 得到什么。"""
    print("① 自带语料，不需要网络")
    for name in CORPORA:
        documents = list(load_corpus(name))
        size = sum(len(document.text.encode()) for document in documents)
        print(f"   {name:<12} {len(documents):>4} 篇  {size / 1e6:>5.2f} MB")
        assert len({document.source for document in documents}) == len(documents)

    print("② 两次读到的一模一样（顺序也是）")
    spec = "python-docs+python-code"
    digests = []
    for _ in range(2):
        digest = hashlib.sha256()
        for document in load_corpus(spec):
            digest.update(document.text.encode())
        digests.append(digest.hexdigest())
    print(f"   SHA-256 {digests[0][:16]}…  指纹 {corpus_fingerprint(spec)[:16]}…")
    assert digests[0] == digests[1]

    print("③ 一篇文档的开头")
    first = next(load_corpus("python-docs"))
    print(f"   {first.source}: {' '.join(first.text.split())[:60]}…")

    print("④ 写错时说清楚，而不是换一个猜的")
    for wrong in ("python-doc", "no/such/*.txt", "python-docs+"):
        try:
            load_corpus(wrong)
        except ValueError as error:
            print(f"   {str(error).replace(str(Path.cwd()), '…')}")
        else:
            raise AssertionError(f"{wrong!r} should have been refused")


if __name__ == "__main__":
    run_demo(demo)
