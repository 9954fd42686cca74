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

跨块的难处：块的边界不管字符，「春」的三个字节、\r\n 的两个字节都可能被切开。

    块一 … e6 98 │ 块二 a5 0d │ 块三 0a …
              └──── 春 ────┘ └─ 换行 ─┘      增量解码器（incremental decoder）攥着半个字符等下一块

规则（每一条都有测试）：
    空白文件           不产生文档；由 corpus.py 汇总后警告或报错
    BOM、CRLF、CR      去掉 / 换成 \n，与 Python 读文本文件的习惯相同
    非法 UTF-8         ValueError，给出字节偏移；errors="replace" 时换成 U+FFFD
    NUL 字节           ValueError：这不是文本；UTF-16 会被认出来
    jsonl              每行一个对象，取 text_key；空行跳过；字符串里的换行原样保留
    parquet            每行一篇，取 text_key 那一栏（见 records.py）
    .gz                txt、md、py、jsonl 都可以再用 gzip 压缩（见 source_files.py）

为什么宁可报错也不跳过：坏一行就丢一行，丢了多少没人知道；编码整个认错时，
「跳过所有坏行」会让语料几乎变空，而训练照样开始、损失照样下降。

为什么切在空行处：空行大多是段落或函数之间，切口两侧都还完整；切在句子中间，
后半截就成了没头没尾的「文档」。切开的地方会多一个文档分隔符，所以上限要大，切口要少。

一步一步看，一个 5 字节一块的世界，文件是「春眠\r\n晓」：

    块      e6 98 a5 e7 9c │ a0 0d 0a e6 99 │ 93
    解码    春             │ 眠 \r\n        │ 晓        半个字符留到下一块
    换行    春             │ 眠 \n          │ 晓        攒起来就是一篇：春眠\n晓

常见疑问：
    中文是 GBK 编码的怎么办？   先转换：iconv -f gbk -t utf-8 旧 > 新；errors="replace" 只会
                               把每个汉字都换成「�」，那不是修复。
    一行就有 1 GB 的 txt？      可以，按上限硬切；1 GB 的一行 jsonl 不行，报错并说出上限。
    压缩的文件？               .gz 直接读，不必先解开；.zip 里可以有许多文件，先解开。
    .csv、.html、.pdf？         先抽出正文存成 .txt 或 .jsonl：标签与表格符号不是要学的东西。

试一试：把 BLOCK_BYTES 改成 1 再跑测试，结果必须一样——汉字、换行跨块都不能出错。

论文：为什么要认真对待每个文档 — Gao et al., *The Pile*, arXiv:2101.00027。

改哪里：新文件类型 → READERS 里添一行；切得更大或更小 → MAX_DOCUMENT_CHARS。
"""

from __future__ import annotations

import codecs
import io
import itertools
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from foundation.demonstration import run_demo
from training.records import hub_rows, parquet_rows, text_of_line, text_of_record
from training.source_files import COMPRESSED, open_source, plainly_said

__all__ = [
    "ENDINGS",
    "READERS",
    "Document",
    "cut_text",
    "is_readable",
    "read_dataset",
    "read_documents",
]

# 一次向操作系统要多少字节：再大也不会更快，再小则系统调用太多。
BLOCK_BYTES = 1 << 20
# 一个文档的上限。分词器要为每个词元记下位置、原文等等，文档太长时那才是内存大头。
MAX_DOCUMENT_CHARS = 1 << 21
# jsonl 一行的上限：一部长篇小说连同 \uXXXX 转义也放得下。
MAX_LINE_BYTES = 1 << 26


@dataclass(frozen=True)
class Document:
    """一个文档：文本，以及出了问题时到哪里去找它。

    source 的样子：book.txt、book.txt#2（切开后的第二段）、data.jsonl:17（第 17 行）。

    >>> Document("春眠不觉晓", "poem.txt").source
    'poem.txt'
    """

    text: str
    source: str


# 三样常常一起传，收成一个，添一种读法时就不必改每个函数的参数。
@dataclass(frozen=True)
class Reading:
    """怎样读：编码错了怎么办，文本叫什么名字，读了多少向谁报告。"""

    errors: str = "strict"  # 或 "replace"
    text_key: str = "text"
    on_read: Callable[[int], None] | None = None  # 又读了文件的多少字节（压缩的按压缩后的算）


def is_readable(path: Path) -> bool:
    """后缀认识吗；.TXT 与 .txt 是一回事：Windows 上的后缀常是大写。

    >>> [is_readable(Path(name)) for name in ("a.TXT", "a.jsonl.gz", "a.png", "a.parquet.gz")]
    [True, True, False, False]
    """
    return _reader_of(path) is not None


def read_documents(
    path: Path,
    label: str,
    *,
    errors: str = "strict",
    text_key: str = "text",
    on_read: Callable[[int], None] | None = None,
) -> Iterator[Document]:
    """逐个产生一个文件里的文档；label 是 Document.source 里文件的称呼。

    用法：for document in read_documents(Path("书.txt"), "书.txt"): print(len(document.text))

    类型：errors 为 "strict" 或 "replace"；text_key 只对 jsonl 与 parquet 有用
          on_read 每读一块调用一次，参数是又读了文件的多少字节（进度条用）
    错误：文件夹、读不了、后缀不认识、编码或 JSON 有错时抛 ValueError
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder, a file is needed")
    # 不认识的后缀不猜：把图片、表格当作文本读，得到的是噪声
    reader = _reader_of(path)
    if reader is None:
        raise ValueError(
            f"{path} ends in {path.suffix or 'nothing'!r}; corpus files must end in {ENDINGS}"
        )
    # 惰性：要一篇才读一篇；读的时候出的错由 plainly_said 翻译
    return plainly_said(path, reader(path, label, Reading(errors, text_key, on_read)))


def _reader_of(path: Path) -> Reader | None:
    """按后缀找读法；.gz 之前的那个后缀才说明内容。parquet 自己已压缩，不再套 gzip。"""
    # 只看名字，不看内容：内容不对，读的时候会说
    suffix = path.suffix.lower()
    if suffix != COMPRESSED:
        return READERS.get(suffix)
    inner = Path(path.stem).suffix.lower()
    return None if inner == ".parquet" else READERS.get(inner)


def read_dataset(
    spec: str, *, errors: str = "strict", text_key: str = "text"
) -> Iterator[Document]:
    """hf:… 的每一行一篇，边下边读；source 的样子：hf:NAME:17（第 17 行）。"""
    # 与 jsonl、parquet 走同一条路：取文本、太长就切、说出是第几行
    for number, record in hub_rows(spec, text_key):
        text = text_of_record(record, f"row {number} of {spec}", errors, text_key)
        yield from _pieces(iter([text]), f"{spec}:{number}")


def cut_text(text: str, limit: int) -> int:
    r"""超过上限的文本该在哪里切开：空行 > 行尾 > 上限处。

    公式：返回 p，limit/2 < p ≤ limit；text[:p] 成为一篇，text[p:] 留着等后文
    为什么不早于一半：否则开头一个空行就会切出极短的文档，文档数失控

    >>> cut_text("aa\nbb\n\ncc\ndd", 9)    # 空行之后
    7
    >>> cut_text("aa\nbb\ncc\ndd", 9)      # 没有空行：行尾之后
    9
    >>> cut_text("aabbccddee", 9)          # 没有换行：上限处
    9
    >>> cut_text("\n\naabbccddee", 9)      # 空行太靠前，不算
    9
    """
    for border in ("\n\n", "\n"):
        place = text.rfind(border, limit // 2, limit)
        if place >= 0:
            return place + len(border)
    return limit


def _read_text(path: Path, label: str, reading: Reading) -> Iterator[Document]:
    """整个文件是一篇（太长才切开）。"""
    return _pieces(_text_blocks(path, reading), label)


def _read_jsonl(path: Path, label: str, reading: Reading) -> Iterator[Document]:
    """每行一篇：{"text": "…"}。大语料最常用的格式，能逐行读，坏了也知道是哪一行。"""
    # offset 是这一行在文件里的位置（压缩的按解压后算），编码错时要用
    errors, text_key = reading.errors, reading.text_key
    with open_source(path, reading.on_read) as file:
        offset = 0
        for number in itertools.count(1):
            where = f"line {number} of {path}"
            # ① 多要一个字节：读满了就说明这一行超限，而不必先把它整个读进来
            line = file.readline(MAX_LINE_BYTES + 1)
            if not line:
                return
            if len(line) > MAX_LINE_BYTES:
                raise ValueError(
                    f"{where} is longer than {MAX_LINE_BYTES} bytes; "
                    "split it, or store long texts as .txt"
                )
            # ② 先看字节，再看编码，最后才是 JSON：越靠前的毛病，越能说清真正的原因
            start = _refuse_binary(path, line, offset)
            try:
                decoded = line[start:].decode("utf-8", errors)
            except UnicodeDecodeError as error:
                raise _bad_utf8(path, error, offset + start) from None
            # ③ 空行常见于文件末尾，不是错误；行号仍按文件里的数
            offset += len(line)
            # ④ 一行也可能很长，同样按上限切开
            if decoded.strip():
                text = text_of_line(decoded, where, errors, text_key)
                yield from _pieces(iter([text]), f"{label}:{number}")


def _read_parquet(path: Path, label: str, reading: Reading) -> Iterator[Document]:
    """每行一篇；只读 text_key 那一栏。"""
    # 行号是文件里的第几行，与别的程序数的一样
    for number, record in parquet_rows(path, reading.text_key, reading.on_read):
        where = f"row {number} of {path}"
        text = text_of_record(record, where, reading.errors, reading.text_key)
        yield from _pieces(iter([text]), f"{label}:{number}")


Reader = Callable[[Path, str, Reading], Iterator[Document]]
# 文件后缀 → 读法。加一种文件类型只需在此添一行。
READERS: dict[str, Reader] = {
    ".txt": _read_text,
    ".md": _read_text,
    ".py": _read_text,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
# 报错时说的话；.gz 不在表里，因为它只是一层包装。
# 它由 READERS 拼成，添了一种后缀，话也跟着变。
ENDINGS = f"{', '.join(READERS)} (or .txt.gz, .jsonl.gz …)"


def _text_blocks(path: Path, reading: Reading) -> Iterator[str]:
    """一块一块地解码，产生字符块。

    一个汉字占三个字节，可能前两个在这块、后一个在下块；「\r\n」也可能被切成两半。
    所以两个解码器都有状态：前者攥着半个字符，后者记得上一块是否以 \r 结尾。
    """
    decoder = codecs.getincrementaldecoder("utf-8")(reading.errors)
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    offset = 0
    with open_source(path, reading.on_read) as file:
        while True:
            # 空块表示到了末尾；在那之前，read 总会给满（最后一块除外）
            data = file.read(BLOCK_BYTES)
            start = _refuse_binary(path, data, offset)
            # 解码器手里可能还攥着上一块末尾的半个字符，出错位置要从那里数起
            held = len(decoder.getstate()[0])
            try:
                text = decoder.decode(data[start:], final=not data)
            except UnicodeDecodeError as error:
                raise _bad_utf8(path, error, offset + start - held) from None
            # 读到末尾（空块）时也要解码一次：半个字符留到最后就是错误，孤立的 \r 要放出来
            yield newlines.decode(text, final=not data)
            if not data:
                return
            offset += len(data)


def _refuse_binary(path: Path, data: bytes, offset: int) -> int:
    """不是文本就抛错；返回 UTF-8 BOM 的长度（只有文件开头才可能有）。

    NUL 字节在 UTF-8 里合法，但文本文件里从不出现，而图片、压缩包、UTF-16 里几乎总有：
    凭它认二进制文件，简单而少误判。Windows 记事本的「Unicode」就是 UTF-16，单独说明。
    """
    # UTF-16 的中文里不一定有 NUL，所以先看开头的 BOM
    if offset == 0 and data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError(f"{path} looks like UTF-16; save it as UTF-8 first")
    zero = data.find(b"\0")
    # 说出位置：日志文件被截断、下载中断，也会留下一段 NUL
    if zero >= 0:
        raise ValueError(
            f"{path} is not a text file: NUL byte at offset {offset + zero}; "
            "leave binary files out of the corpus"
        )
    return len(codecs.BOM_UTF8) if offset == 0 and data.startswith(codecs.BOM_UTF8) else 0


def _bad_utf8(path: Path, error: UnicodeDecodeError, offset: int) -> ValueError:
    """offset 是 error.object 的第一个字节在文件中的位置。"""
    # 字节的值有助于认出原来的编码：中文的 GBK 多在 0xb0 到 0xf7 之间
    return ValueError(
        f"{path} is not valid UTF-8: byte 0x{error.object[error.start]:02x} at offset "
        f"{offset + error.start}; convert the file, or ask for errors='replace'"
    )


def _pieces(blocks: Iterator[str], label: str) -> Iterator[Document]:
    """把字符流攒成文档，不超过 MAX_DOCUMENT_CHARS。切开过的才在 source 里编号 #1、#2…

    各段首尾相接就是原文，一个字符不多、一个不少；只有整个文件都是空白时才什么也不产生。
    """
    # 只攥着不到一篇的字符；块来一个接一个，够长就切下一篇放出去
    waiting, number = "", 0
    for block in blocks:
        # ① 接上新的一块；至多是一篇加一块那么长
        waiting += block
        # ② 够长就切，切到不够长为止
        while len(waiting) > MAX_DOCUMENT_CHARS:
            place, number = cut_text(waiting, MAX_DOCUMENT_CHARS), number + 1
            yield Document(waiting[:place], f"{label}#{number}")
            waiting = waiting[place:]
    # ③ 剩下的是最后一篇；没切开过的，名字里不加编号
    if number and waiting:
        yield Document(waiting, f"{label}#{number + 1}")
    elif waiting.strip():
        yield Document(waiting, label)


def demo() -> None:
    """写几个有毛病的小文件，看每一种得到什么。

    好的读出来，坏的说清楚；两边都用断言核对，所以这份清单不会过时。
    """
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
        # BOM 是文件开头的「\ufeff」，留着它，第一个词元就成了没人用的怪字符
        print("① 读得了的：BOM 去掉，换行统一，jsonl 每行一篇")
        for file, content in good.items():
            (folder / file).write_bytes(content)
            for document in read_documents(folder / file, file):
                print(f"   {document.source:<14} {document.text!r}")
                # 读进来的文本里，不再有 BOM 与 \r：同样的内容，在哪个系统上存的都一样
                assert "\r" not in document.text
                assert "\ufeff" not in document.text
        # 错误里都有文件名；演示把临时文件夹换成省略号
        print("② 读不了的：说出文件、位置、该怎么办，绝不悄悄跳过")
        # GBK、图片、半行 JSON、拼错的键、null：都是真实语料里的常客
        for file, content in bad.items():
            (folder / file).write_bytes(content)
            try:
                list(read_documents(folder / file, file))
            except ValueError as error:
                print(f"   {str(error).replace(name, '…')}")
            # 没有报错才是演示的失败
            else:
                raise AssertionError(f"{file} should have been refused")
    # 真正的上限是百万级的；这里用 9 个字符来看清规则
    print("③ 过长的文本切在空行处；没有空行切在行尾；再没有才硬切")
    # 每一种都必须有进展：切出空的一篇就会永远循环下去
    for text in ("aa\nbb\n\ncc\ndd", "aa\nbb\ncc\ndd", "aabbccddee"):
        place = cut_text(text, 9)
        print(f"   上限 9：{text!r:<20} → {text[:place]!r} | {text[place:]!r}")
        assert 0 < place <= 10


if __name__ == "__main__":
    run_demo(demo)
