r"""一个文件怎样变成若干文档（document），而内存始终有界？

训练语料大到几十 GB 是常事，整个读进内存就会耗尽；网上抓来的文件又什么毛病都有：
编码错、换行不一、混进二进制、某一行的 JSON 坏了。这里一块一块地读，
遇到毛病就停下，说出文件、位置和该怎么办——悄悄跳过坏数据，会让人以为训练用的是全部数据。

    字节流 ──解码──▶ 字符流 ──攒到上限就切──▶ Document, Document, …
    [块][块][块]     UTF-8，去 BOM，           切在空行处；没有空行切在行尾；
     BLOCK_BYTES     换行统一成 \n             连行尾也没有，就切在上限处

内存上界：

$$M \le c\,(\mathrm{BLOCK\_BYTES} + 4 \cdot \mathrm{MAX\_DOCUMENT\_CHARS})$$

与文件大小无关（CPython 的字符串每字符至多 4 字节，c 是拼接时的临时副本数）。
jsonl 的一行必须整行解析，所以那里另设行长上限 MAX_LINE_BYTES。

规则（每一条都有测试）：
    空白文件           不产生文档；由 corpus.py 汇总后警告或报错
    BOM、CRLF、CR      去掉 / 换成 \n，与 Python 读文本文件的习惯相同
    非法 UTF-8         ValueError，给出字节偏移；errors="replace" 时换成 U+FFFD
    NUL 字节           ValueError：这不是文本；UTF-16 会被认出来
    jsonl              每行一个对象，取 text_key；空行跳过；字符串里的换行原样保留

论文：为什么要认真对待每个文档 — Gao et al., *The Pile*, arXiv:2101.00027。

改哪里：新文件类型 → READERS 里添一行；切得更大或更小 → MAX_DOCUMENT_CHARS。
"""

from __future__ import annotations

import codecs
import io
import itertools
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from foundation.checks import nearest
from foundation.demonstration import run_demo

__all__ = ["READERS", "Document", "cut_text", "read_documents"]

# 一次向操作系统要多少字节：再大也不会更快，再小则系统调用太多。
BLOCK_BYTES = 1 << 20
# 一个文档的上限。分词器会为每个词元记下位置、原文等近百字节，文档太长时那才是内存大头。
MAX_DOCUMENT_CHARS = 1 << 21
# jsonl 一行的上限：一部长篇小说连同 \uXXXX 转义也放得下。
MAX_LINE_BYTES = 1 << 26


@dataclass(frozen=True)
class Document:
    """一个文档：文本，以及出了问题时到哪里去找它。"""

    text: str
    source: str


def read_documents(
    path: Path, label: str, *, errors: str = "strict", text_key: str = "text"
) -> Iterator[Document]:
    """逐个产生一个文件里的文档；label 是 Document.source 里文件的称呼。

    错误：文件夹、读不了、后缀不认识、编码或 JSON 有错时抛 ValueError
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder, a file is needed")
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(
            f"{path} ends in {path.suffix or 'nothing'!r}; corpus files must end in "
            f"{', '.join(READERS)}"
        )
    return reader(path, label, errors, text_key)


def cut_text(text: str, limit: int) -> int:
    """超过上限的文本该在哪里切开：空行 > 行尾 > 上限处，都不早于一半。"""
    for border in ("\n\n", "\n"):
        place = text.rfind(border, limit // 2, limit)
        if place >= 0:
            return place + len(border)
    return limit


def _read_text(path: Path, label: str, errors: str, text_key: str) -> Iterator[Document]:
    return _pieces(_text_blocks(path, errors), label)


def _read_jsonl(path: Path, label: str, errors: str, text_key: str) -> Iterator[Document]:
    with _open(path) as file:
        offset = 0
        for number in itertools.count(1):
            where = f"line {number} of {path}"
            # 多要一个字节：读满了就说明这一行超限，而不必先把它整个读进来。
            line = file.readline(MAX_LINE_BYTES + 1)
            if not line:
                return
            if len(line) > MAX_LINE_BYTES:
                raise ValueError(
                    f"{where} is longer than {MAX_LINE_BYTES} bytes; "
                    "split it, or store long texts as .txt"
                )
            start = _refuse_binary(path, line, offset)
            try:
                decoded = line[start:].decode("utf-8", errors)
            except UnicodeDecodeError as error:
                raise _bad_utf8(path, error, offset + start) from None
            offset += len(line)
            if decoded.strip():
                text = _text_of_line(decoded, where, errors, text_key)
                yield from _pieces(iter([text]), f"{label}:{number}")


# 文件后缀 → 读法。加一种文件类型只需在此添一行。
READERS: dict[str, Callable[[Path, str, str, str], Iterator[Document]]] = {
    ".txt": _read_text,
    ".md": _read_text,
    ".py": _read_text,
    ".jsonl": _read_jsonl,
}


def _open(path: Path) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None


def _text_blocks(path: Path, errors: str) -> Iterator[str]:
    """一块一块地解码。一个汉字占三个字节，可能跨块，所以要用有状态的增量解码器。"""
    decoder = codecs.getincrementaldecoder("utf-8")(errors)
    # 「\r\n」也可能跨块，同样需要状态。
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    offset = 0
    with _open(path) as file:
        while True:
            data = file.read(BLOCK_BYTES)
            start = _refuse_binary(path, data, offset)
            # 解码器手里可能还攥着上一块末尾的半个字符，出错位置要从那里数起。
            held = len(decoder.getstate()[0])
            try:
                text = decoder.decode(data[start:], final=not data)
            except UnicodeDecodeError as error:
                raise _bad_utf8(path, error, offset + start - held) from None
            yield newlines.decode(text, final=not data)
            if not data:
                return
            offset += len(data)


def _refuse_binary(path: Path, data: bytes, offset: int) -> int:
    """不是文本就抛错；返回 UTF-8 BOM 的长度（只有文件开头才可能有）。"""
    if offset == 0 and data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError(f"{path} looks like UTF-16; save it as UTF-8 first")
    zero = data.find(b"\0")
    if zero >= 0:
        raise ValueError(
            f"{path} is not a text file: NUL byte at offset {offset + zero}; "
            "leave binary files out of the corpus"
        )
    return len(codecs.BOM_UTF8) if offset == 0 and data.startswith(codecs.BOM_UTF8) else 0


def _bad_utf8(path: Path, error: UnicodeDecodeError, offset: int) -> ValueError:
    return ValueError(
        f"{path} is not valid UTF-8: byte 0x{error.object[error.start]:02x} at offset "
        f"{offset + error.start}; convert the file, or ask for errors='replace'"
    )


def _pieces(blocks: Iterator[str], label: str) -> Iterator[Document]:
    """把字符流攒成文档，不超过 MAX_DOCUMENT_CHARS。切开过的才在 source 里编号 #1、#2…"""
    waiting, number = "", 0
    for block in blocks:
        waiting += block
        while len(waiting) > MAX_DOCUMENT_CHARS:
            place, number = cut_text(waiting, MAX_DOCUMENT_CHARS), number + 1
            yield Document(waiting[:place], f"{label}#{number}")
            waiting = waiting[place:]
    if number and waiting:
        yield Document(waiting, f"{label}#{number + 1}")
    elif waiting.strip():
        yield Document(waiting, label)


def _text_of_line(line: str, where: str, errors: str, text_key: str) -> str:
    """从 jsonl 的一行取出文本。"""
    try:
        record: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{where} is not valid JSON: {error.msg} at column {error.colno}"
        ) from None
    except (RecursionError, ValueError) as error:  # 嵌套过深；数字过长
        raise ValueError(f"{where} is not usable JSON: {error}") from None
    if not isinstance(record, dict):
        raise ValueError(
            f'{where} must be an object such as {{"{text_key}": "…"}}, got {type(record).__name__}'
        )
    if text_key not in record:
        guess = nearest(text_key, record)
        hint = f"; did you mean text_key={guess!r}?" if guess else ""
        raise ValueError(f"{where} has no {text_key!r}; its keys: {', '.join(record)}{hint}")
    text = record[text_key]
    if not isinstance(text, str):
        kind = "null" if text is None else type(text).__name__
        raise ValueError(f"{where}: {text_key!r} must be a string, got {kind}")
    return _without_lone_surrogates(text, where, errors)


def _without_lone_surrogates(text: str, where: str, errors: str) -> str:
    """JSON 能写出 "\\ud800" 这样的半个字符，它没有 UTF-8 编码，分词器也无从处理。"""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        if errors == "strict":
            raise ValueError(
                f"{where} holds a lone surrogate U+{ord(text[error.start]):04X} at character "
                f"{error.start}; repair the escape, or ask for errors='replace'"
            ) from None
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def demo() -> None:
    """写几个有毛病的小文件，看每一种得到什么。"""
    good: dict[str, bytes] = {
        "bom_crlf.txt": codecs.BOM_UTF8 + "春眠不觉晓，\r\n处处闻啼鸟。\r\n".encode(),
        "two.jsonl": '{"text": "第一篇"}\n\n{"text": "第二篇"}\n'.encode(),
    }
    bad: dict[str, bytes] = {
        "gbk.txt": "夜来风雨声".encode("gbk"),
        "picture.txt": b"\x89PNG\r\n\x1a\n\x00\x00",
        "broken.jsonl": b'{"text": "ok"}\n{"text": ',
        "missing.jsonl": b'{"txt": "ok"}\n',
        "null.jsonl": b'{"text": null}\n',
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print("① 读得了的：BOM 去掉，换行统一，jsonl 每行一篇")
        for file, content in good.items():
            (folder / file).write_bytes(content)
            for document in read_documents(folder / file, file):
                print(f"   {document.source:<14} {document.text!r}")
                assert "\r" not in document.text
                assert "\ufeff" not in document.text
        print("② 读不了的：说出文件、位置、该怎么办，绝不悄悄跳过")
        for file, content in bad.items():
            (folder / file).write_bytes(content)
            try:
                list(read_documents(folder / file, file))
            except ValueError as error:
                print(f"   {str(error).replace(name, '…')}")
            else:
                raise AssertionError(f"{file} should have been refused")
    print("③ 过长的文本切在空行处；没有空行切在行尾；再没有才硬切")
    for text in ("aa\nbb\n\ncc\ndd", "aa\nbb\ncc\ndd", "aabbccddee"):
        place = cut_text(text, 9)
        print(f"   上限 9：{text!r:<20} → {text[:place]!r} | {text[place:]!r}")
        assert 0 < place <= 10


if __name__ == "__main__":
    run_demo(demo)
