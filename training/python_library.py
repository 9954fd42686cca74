r"""没有网络、没有下载，拿什么训练？——每个 Python 自带的说明书和源代码。

    python-docs   语言参考手册：模块 pydoc_data.topics，英文，`help("assert")` 显示的就是它
    python-code   标准库的 .py 源代码：英文的说明与注释，加上 Python

为什么选它们：
    处处都有      装了 Python 就有，断网、换机、若干年后都一样能跑
    质量高        每一行都有人审过；说明、注释与代码相互解释
    有结构        模型学没学会，缩进与括号一看便知，不必等到它会讲道理

源代码里不收的，以及为什么：
    测试                    断言罗列，重复得多，解释得少
    第三方代码（vendored）  ensurepip 里的 wheel、_vendor：别人的项目，各版本差得远
    机器生成的编码表        每个几百行「字节 → 字符」，不是人写给人看的
    lib2to3                 新版 Python 已删去，收了它各版本的语料就差得更远
    各机不同的模块          sitecustomize、_sysconfigdata_…：发行版添的，使两台机器的语料不同

    标准库文件夹 ──去掉不收的文件夹──▶ 顶层模块 ∈ sys.stdlib_module_names ──去掉编码表──▶ 按名字排序

得到的语料是 Python 版本 v 的函数，与机器、操作系统、安装位置无关：

$$\text{corpus}(v) = \mathrm{sort}\{\, p : \mathrm{top}(p) \in \text{stdlib}(v),\
  p \notin \text{left out} \,\}$$

常见疑问：
    Python 版本不同，语料也不同吗？  略有不同（标准库每年在长），所以报告结果时要说明版本。
    它有多大？                       运行本文件，量给你看；够一个百万参数的模型学上很久。
    学出来的模型会编程吗？           会写出像样的缩进、函数头、文档字符串；内容是胡编的。

试一试：
    from training.corpus import load_corpus
    for document in load_corpus("python-code"):      # 一篇一篇地来，不会一次占满内存
        if "yield" in document.text: print(document.source)

论文：代码混入文本能提升推理 — Aryabumi et al., *To Code, or Not To Code?*, arXiv:2408.10914。

改哪里：加一个自带的语料 → CORPORA 里添一行；源代码收哪些 → LEFT_OUT 与 _is_wanted。
"""

from __future__ import annotations

import os
import sys
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from foundation.demonstration import run_demo
from training.documents import Document, read_documents

__all__ = ["CORPORA", "library_files", "walk"]

# 标准库里不收的文件夹与模块，在任何一层出现都不收。
LEFT_OUT = frozenset(
    {
        *("test", "tests", "idle_test"),  # 测试
        *("ensurepip", "_vendor", "_vendored", "_bundled"),  # 别人的代码
        *("site-packages", "dist-packages"),  # 装进来的包
        *("pydoc_data",),  # 已经是 python-docs
        *("lib2to3",),  # 新版 Python 没有
    }
)
# 编码表（cp1252.py 等）由脚本 gencodec.py 生成；文件开头自己写明了。
GENERATED_MARK = b"gencodec"


def walk(root: Path, left_out: frozenset[str] = frozenset()) -> Iterator[Path]:
    """文件夹里的全部文件，按相对路径排序；不进隐藏文件夹（.git、.venv）与 __pycache__。

    操作系统给出的顺序因机器而异，不排序就没有可重现的语料。
    原地改 subfolders 是 os.walk 的约定：删掉的文件夹就不再进去。不跟随链接，所以不会绕圈。
    """
    found: list[Path] = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [
            name
            for name in subfolders
            if name not in left_out and name != "__pycache__" and not name.startswith(".")
        ]
        # 模块既可以是文件夹也可以是单个文件，所以去掉 .py 再比
        found += [
            Path(folder, name)
            for name in names
            if name.removesuffix(".py") not in left_out and not name.startswith(".")
        ]
    # Windows 的分隔符是反斜杠；统一成斜杠再比，各系统的顺序才相同
    yield from sorted(found, key=lambda path: path.relative_to(root).as_posix())


def library_files() -> list[Path]:
    """标准库中收进 python-code 的源文件，按名字排序。

    错误：标准库在 zip 里（Windows 的 embeddable 版），或只有 .pyc 时，
          抛 ValueError，说出找过哪里、该装什么
    """
    # 先按名字去掉整个文件夹，再逐个文件看；前者省去进入上万个测试文件
    root = _library_root()
    files = []
    for path in walk(root, LEFT_OUT):
        # 只收标准库自己的顶层模块；Python 自己知道它们的名字
        top = path.relative_to(root).parts[0].removesuffix(".py")
        if path.suffix == ".py" and top in sys.stdlib_module_names and _is_wanted(path):
            files.append(path)
    if not files:
        raise ValueError(
            f"corpus 'python-code' needs the library's sources, but {root} has no .py files "
            "(zipped or compiled only); install the full Python, or train on files of your own"
        )
    return files


def _library_root() -> Path:
    """标准库在哪里。虚拟环境（venv）没有自己的标准库，sysconfig 会指回原来的那份。"""
    return Path(sysconfig.get_path("stdlib"))


def _is_wanted(path: Path) -> bool:
    """编码表按内容认：encodings/ 里也有人写的（utf_8.py、punycode.py），那些要收。"""
    if path.parent.name != "encodings":
        return True
    with open(path, "rb") as file:
        return GENERATED_MARK not in file.read(400)


def _python_docs() -> Iterator[Document]:
    """手册的每个条目一篇，按条目名排序。"""
    # 精简过的 Python（某些容器镜像、系统自带的 minimal 版）没有这个模块
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
    """每个源文件一篇；source 里写相对路径，各机相同。"""
    root = _library_root()
    for path in library_files():
        label = f"python-code:{path.relative_to(root).as_posix()}"
        yield from read_documents(path, label)


# 名字 → 怎样产生文档。加一个自带的语料只需在此添一行；
# 值是函数而不是列表：不用的语料不读，用到时才逐篇产生。
CORPORA: dict[str, Callable[[], Iterator[Document]]] = {
    "python-docs": _python_docs,
    "python-code": _python_code,
}


def demo() -> None:
    """量一量自带的语料，看看最常见的是什么。

    数目随 Python 版本略有不同；断言只说那些在每个版本上都成立的事。
    """
    print(f"① 自带语料（Python {sys.version_info.major}.{sys.version_info.minor}），不需要网络")
    for name, documents_of in CORPORA.items():
        documents = list(documents_of())
        size = sum(len(document.text.encode()) for document in documents)
        longest = max(documents, key=lambda document: len(document.text))
        print(f"   {name}：{len(documents)} 篇，{size / 1e6:.2f} MB，最长的是 {longest.source}")
        # 名字互不相同，顺序就是名字的顺序，没有一篇是空的
        sources = [document.source for document in documents]
        assert len(set(sources)) == len(sources)
        assert sources == sorted(sources)
        assert all(document.text.strip() for document in documents)

    # 数一数各模块的文件，顺便核对：不收的名字在路径的任何一层都没有出现
    print("② 收了哪些顶层模块（源文件最多的五个）")
    root = _library_root()
    parts = [path.relative_to(root).parts for path in library_files()]
    for name, number in Counter(part[0] for part in parts).most_common(5):
        print(f"   {name:<16} {number} 个文件")
    assert not LEFT_OUT & {piece for part in parts for piece in part}

    # 原文有许多空行与标题线；这里压成一行，只为好看
    print("③ 一篇文档的开头")
    first = next(_python_docs())
    print(f"   {first.source}: {' '.join(first.text.split())[:60]}…")


if __name__ == "__main__":
    run_demo(demo)
