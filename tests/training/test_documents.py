"""One file → documents: every kind of bad input is refused by name, value and limit."""

import codecs
import json
import re
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training import documents, source_files
from training.documents import Document, cut_text, read_documents


def texts(path, **options):
    return [document.text for document in read_documents(path, path.name, **options)]


def refused(path, **options):
    with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
        texts(path, **options)
    return str(caught.value)


@pytest.fixture
def write(tmp_path):
    def write_file(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return path

    return write_file


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.py", "A.TXT"])
def test_a_text_file_is_one_document(write, name):
    path = write(name, "春眠不觉晓\n\n处处闻啼鸟\n")
    assert list(read_documents(path, "label")) == [Document("春眠不觉晓\n\n处处闻啼鸟\n", "label")]


def test_byte_order_mark_and_line_ends(write):
    content = codecs.BOM_UTF8 + "一\r\n二\r三\n\ufeff四\r".encode()
    assert texts(write("a.txt", content)) == ["一\n二\n三\n\ufeff四\n"]  # only the first is a BOM


@pytest.mark.parametrize("block", [1, 2, 3, 5])
def test_a_mark_inside_the_file_is_text(write, monkeypatch, block):
    monkeypatch.setattr(documents, "BLOCK_BYTES", block)
    assert texts(write("a.txt", "ab\ufeffc\ufeff")) == ["ab\ufeffc\ufeff"]
    bad = write("a.jsonl", '{"text": "x"}\n\ufeff{"text": "y"}\n')
    assert "line 2" in refused(bad)


def test_jsonl_gives_a_document_per_line(write):
    content = codecs.BOM_UTF8 + '{"text": "一\\r\\n", "id": 1}\r\n\n{"text": "二"}'.encode()
    found = list(read_documents(write("a.jsonl", content), "a.jsonl"))
    assert found == [Document("一\r\n", "a.jsonl:1"), Document("二", "a.jsonl:3")]


def test_jsonl_text_key(write):
    path = write("a.jsonl", '{"content": "x", "text": 3}\n')
    assert texts(path, text_key="content") == ["x"]


@pytest.mark.parametrize("content", ["", "  \n\t\n", codecs.BOM_UTF8])
def test_a_blank_file_has_no_documents(write, content):
    assert texts(write("a.txt", content)) == []
    assert texts(write("a.jsonl", content)) == []


@pytest.mark.parametrize("block", [1, 2, 3, 7, 1 << 20])
@pytest.mark.parametrize("lead", ["", "é", "春春"])
def test_invalid_utf8_names_the_offset(write, monkeypatch, block, lead):
    monkeypatch.setattr(documents, "BLOCK_BYTES", block)
    prefix = codecs.BOM_UTF8 + lead.encode() if block > 3 else lead.encode()
    path = write("a.txt", prefix + b"ab\xff tail")
    message = refused(path)
    assert "0xff" in message
    assert f"offset {len(prefix) + 2};" in message
    assert "errors='replace'" in message
    assert "ab\ufffd tail" in texts(path, errors="replace")[0]


def test_a_file_that_ends_inside_a_character(write):
    message = refused(write("a.txt", "ab春".encode()[:-1]))
    assert "0xe6 at offset 2" in message


def test_invalid_utf8_in_jsonl_names_the_offset(write):
    first = '{"text": "一"}\n'.encode()
    path = write("a.jsonl", first + b'{"text": "\xff"}\n')
    assert f"0xff at offset {len(first) + 10};" in refused(path)
    assert texts(path, errors="replace") == ["一", "\ufffd"]


@pytest.mark.parametrize("errors", ["strict", "replace"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_binary_files_are_named(write, monkeypatch, name, errors):
    monkeypatch.setattr(documents, "BLOCK_BYTES", 4)
    path = write(name, b'{"text": "x"}\nPNG\0\0')
    assert "NUL byte at offset 17" in refused(path, errors=errors)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf16_is_recognised(write, encoding):
    marks = {"utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE}
    content = marks.get(encoding, b"") + "春眠不觉晓".encode(encoding)
    assert "UTF-16" in refused(write("a.txt", content))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"text": ', ["not valid JSON", "column 10"]),
        ("plain words", ["not valid JSON", "column 1"]),
        ("[1, 2]", ["must be an object", "got list"]),
        ('"words"', ["must be an object", "got str"]),
        ('{"Text": "x", "id": 1}', ["has no 'text'", "its keys: Text, id", "text_key='Text'"]),
        ("{}", ["has no 'text'"]),
        ('{"text": null}', ["must be a string, got null"]),
        ('{"text": 7}', ["must be a string, got int"]),
        ('{"text": "a\\ud83d"}', ["lone surrogate U+D83D at character 1"]),
        ("[" * 200_000, ["not usable JSON"]),
    ],
)
def test_bad_jsonl_names_the_line(write, line, expected):
    path = write("a.jsonl", '{"text": "fine"}\n\n' + line + "\n")
    message = refused(path)
    assert f"line 3 of {path}" in message
    for part in expected:
        assert part in message


def test_a_lone_surrogate_can_be_replaced_and_a_pair_is_kept(write):
    path = write("a.jsonl", '{"text": "a\\ud83d\\ud83d\\ude00\\ude00b"}\n')
    assert texts(path, errors="replace") == ["a\ufffd😀\ufffdb"]
    assert texts(write("b.jsonl", '{"text": "\\ud83d\\ude00"}')) == ["😀"]


def test_a_folder_where_a_file_is_needed(tmp_path):
    folder = tmp_path / "a.txt"
    folder.mkdir()
    assert "is a folder, a file is needed" in refused(folder)


def test_unknown_ending_lists_the_known(write):
    assert "'.csv'; corpus files must end in .txt, .md, .py, .jsonl" in refused(write("a.csv", "x"))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_file_that_cannot_be_read(write, monkeypatch, name):
    path = write(name, "x")

    def denied(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(source_files, "CountedFile", denied)
    assert "cannot be read: Permission denied" in refused(path)


def test_a_file_that_is_gone(tmp_path):
    assert "cannot be read" in refused(tmp_path / "gone.txt")


# --- bounded memory -----------------------------------------------------------------------------


def test_a_huge_line_needs_little_memory(write, monkeypatch):
    monkeypatch.setattr(documents, "BLOCK_BYTES", 1 << 14)
    monkeypatch.setattr(documents, "MAX_DOCUMENT_CHARS", 1 << 15)
    path = write("a.txt", b"a" * (8 << 20))
    tracemalloc.start()
    try:
        n_chars = sum(len(document.text) for document in read_documents(path, "a"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert n_chars == 8 << 20
    assert peak < 1 << 20


def test_a_huge_jsonl_line_is_refused_without_reading_it(write, monkeypatch):
    monkeypatch.setattr(documents, "MAX_LINE_BYTES", 1000)
    fits = json.dumps({"text": "y" * (1000 - 13)}) + "\n"
    assert len(fits) == 1000
    path = write("a.jsonl", fits + '{"text": "' + "x" * (8 << 20) + '"}\n')
    tracemalloc.start()
    try:
        message = refused(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert f"line 2 of {path} is longer than 1000 bytes" in message
    assert peak < 1 << 20


def test_long_texts_are_cut_and_numbered(write, monkeypatch):
    monkeypatch.setattr(documents, "MAX_DOCUMENT_CHARS", 8)
    found = list(read_documents(write("a.txt", "aaaa\n\nbbb\nccccc\n"), "a.txt"))
    assert found == [
        Document("aaaa\n\n", "a.txt#1"),
        Document("bbb\ncccc", "a.txt#2"),
        Document("c\n", "a.txt#3"),
    ]
    many = list(read_documents(write("b.txt", "x" * 43), "b.txt"))  # all from one block
    assert [len(document.text) for document in many] == [8, 8, 8, 8, 8, 3]
    lines = write("a.jsonl", json.dumps({"text": "0123456789"}))
    assert [d.source for d in read_documents(lines, "a.jsonl")] == ["a.jsonl:1#1", "a.jsonl:1#2"]


@given(
    st.text(st.sampled_from("a春\n\r\u00e9😀 "), min_size=0, max_size=60),
    st.integers(1, 9),
    st.integers(2, 20),
)
def test_pieces_put_together_are_the_text(tmp_path_factory, text, block, limit):
    path = tmp_path_factory.getbasetemp() / "pieces.txt"
    path.write_bytes(text.encode("utf-8"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "BLOCK_BYTES", block)
        patch.setattr(documents, "MAX_DOCUMENT_CHARS", limit)
        pieces = texts(path)
    expected = text.replace("\r\n", "\n").replace("\r", "\n")
    if len(expected) > limit or expected.strip():
        assert "".join(pieces) == expected
    else:
        assert pieces == []
    assert all(0 < len(piece) <= limit for piece in pieces)


@pytest.mark.parametrize(
    ("text", "limit", "place"),
    [
        ("aaaa\n\nb\nccccc", 8, 6),  # a blank line is better than a later line end
        ("aaaa\nbb\nccccc", 8, 8),  # the last line end
        ("a\n\naaaaaaaaa", 8, 8),  # too early to count
        ("aaaaaaaa\n\n", 8, 8),  # too late
        ("aaa\n\n\n\naaa", 8, 7),  # the last blank line
    ],
)
def test_where_a_long_text_is_cut(text, limit, place):
    assert cut_text(text, limit) == place


@given(st.text(st.sampled_from("ab\n"), min_size=3, max_size=40), st.integers(2, 20))
def test_cut_is_within_the_upper_half(text, limit):
    place = cut_text(text, limit)
    assert limit // 2 < place <= limit
    best = max((text.rfind(b, limit // 2, limit) for b in ("\n\n", "\n")), default=-1)
    if best < 0:
        assert place == limit
