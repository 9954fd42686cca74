"""A spec → documents: names, files, folders, patterns, and what a mistake gets."""

import doctest
import importlib
import os
import warnings

import pytest

from training import corpus, documents
from training.corpus import corpus_files, corpus_fingerprint, load_corpus


def sources(spec, **options):
    return [document.source for document in load_corpus(spec, **options)]


@pytest.fixture
def folder(tmp_path):
    for name in ("b.txt", "a.md", "sub/c.py", "sub/D.TXT", "sub/deep/e.jsonl", "sub.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"text": "x"}\n', encoding="utf-8")
    for name in (".hidden/h.txt", "__pycache__/p.py", "sub/.dot.txt", "cover.png", "table.csv"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("not wanted", encoding="utf-8")
    return tmp_path


def relative(paths, folder):
    return [os.path.relpath(path, folder).replace(os.sep, "/") for path in paths]


def test_a_folder_is_read_recursively_in_sorted_order(folder):
    expected = ["a.md", "b.txt", "sub.txt", "sub/D.TXT", "sub/c.py", "sub/deep/e.jsonl"]
    assert relative(corpus_files(folder), folder) == expected
    assert [s.split(":")[0] for s in relative(sources(folder), folder)] == expected


def test_order_does_not_depend_on_the_file_system(folder, monkeypatch):
    expected = corpus_files(folder), corpus_files(folder / "*.txt")
    walk, match = os.walk, corpus.glob.glob

    def other_walk(root):
        for name, subfolders, names in walk(root):
            subfolders.reverse()
            yield name, subfolders, names[::-1]

    monkeypatch.setattr(os, "walk", other_walk)
    monkeypatch.setattr(corpus.glob, "glob", lambda *a, **k: match(*a, **k)[::-1])
    assert (corpus_files(folder), corpus_files(folder / "*.txt")) == expected


def test_patterns(folder):
    assert relative(corpus_files(f"{folder}/*.txt"), folder) == ["b.txt", "sub.txt"]
    assert relative(corpus_files(f"{folder}/*"), folder) == ["a.md", "b.txt", "sub.txt"]
    found = relative(corpus_files(f"{folder}/sub/**/*.*"), folder)
    assert found == ["sub/D.TXT", "sub/c.py", "sub/deep/e.jsonl"]


def test_a_file_name_may_hold_a_plus_or_a_bracket(tmp_path):
    for name in ("c++.txt", "a+b.txt", "x[1].txt"):
        (tmp_path / name).write_text("x", encoding="utf-8")
        assert sources(f"{tmp_path}/{name}") == [f"{tmp_path}/{name}".replace("/", os.sep)]
        assert sources(tmp_path / name) == [str(tmp_path / name)]


def test_names_and_paths_combine_in_the_order_given(folder):
    found = sources(f"{folder / 'b.txt'}+python-docs")
    assert found[0] == str(folder / "b.txt")
    assert found[1] == "python-docs:assert"
    both = sources(" python-docs + python-code ")
    assert both == sources("python-docs") + sources("python-code")


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("python-doc", ["python-docs, python-code", "did you mean 'python-docs'?"]),
        ("python-docs+pyhton-code", ["'pyhton-code'", "did you mean 'python-code'?"]),
        ("python-docs+", ["'python-docs+'"]),
        ("no/such/file.txt", ["'no/such/file.txt'", "neither a name"]),
        ("no/such/*.txt", ["'no/such/*.txt'", "nothing at all"]),
        ("", ["empty", "python-docs"]),
        ("  ", ["empty"]),
    ],
)
def test_what_cannot_be_found_is_said_at_once(spec, parts):
    with pytest.raises(ValueError, match="corpus|matches") as caught:
        load_corpus(spec)  # at the call, not at the first document
    for part in parts:
        assert part in str(caught.value)


def test_a_folder_or_pattern_without_text_files(tmp_path):
    with pytest.raises(ValueError, match=r"holds no file ending in \.txt, \.md, \.py, \.jsonl"):
        load_corpus(tmp_path)
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(ValueError, match="it matches 1 others"):
        load_corpus(tmp_path / "*")
    with pytest.raises(ValueError, match=r"ends in '\.png'; corpus files must end in \.txt"):
        load_corpus(tmp_path / "a.png")


def test_errors_must_be_strict_or_replace(tmp_path):
    with pytest.raises(ValueError, match="errors must be one of strict, replace; got 'ignore'"):
        load_corpus("python-docs", errors="ignore")
    (tmp_path / "a.txt").write_bytes(b"a\xff")
    with pytest.raises(ValueError, match="offset 1"):
        list(load_corpus(tmp_path))
    assert [d.text for d in load_corpus(tmp_path, errors="replace")] == ["a\ufffd"]


def test_an_empty_file_is_an_error_alone_and_a_warning_among_others(tmp_path):
    (tmp_path / "empty.txt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"empty\.txt' holds no text: 1 file\(s\), 0 bytes"):
        list(load_corpus(tmp_path / "empty.txt"))
    (tmp_path / "blank.md").write_bytes(b" \n")
    with pytest.raises(ValueError, match=r"2 file\(s\), 2 bytes, all blank"):
        list(load_corpus(tmp_path))
    (tmp_path / "text.txt").write_text("x", encoding="utf-8")
    with pytest.warns(UserWarning, match=r"2 file\(s\) of the corpus .* the first: .*blank\.md"):
        assert len(list(load_corpus(tmp_path))) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(load_corpus(tmp_path / "text.txt"))) == 1


def test_text_key_reaches_the_files(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"body": "x"}\n', encoding="utf-8")
    assert [d.text for d in load_corpus(tmp_path, text_key="body")] == ["x"]


def test_documents_come_one_by_one(folder, monkeypatch):
    opened = []
    real = documents.open_source

    def counting(path, on_read):
        opened.append(path)
        return real(path, on_read)

    monkeypatch.setattr(documents, "open_source", counting)
    stream = load_corpus(folder)
    next(stream)
    assert len(opened) == 1


def test_the_fingerprint_changes_with_the_corpus(folder):
    before = corpus_fingerprint(folder)
    assert corpus_fingerprint(folder) == before
    path = folder / "b.txt"
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))
    touched = corpus_fingerprint(folder)
    path.write_text("longer than it was", encoding="utf-8")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))
    longer = corpus_fingerprint(folder)
    (folder / "new.txt").write_text("x", encoding="utf-8")
    added = corpus_fingerprint(folder)
    other = corpus_fingerprint(folder / "sub")
    assert len({before, touched, longer, added, other}) == 5


def test_the_fingerprint_of_the_library_depends_on_the_version(monkeypatch):
    before = [corpus_fingerprint(name) for name in ("python-docs", "python-code")]
    assert before[0] != before[1]
    monkeypatch.setattr(corpus.platform, "python_version", lambda: "3.99.0")
    assert corpus_fingerprint("python-docs") != before[0]


MODULES = [
    *("batch", "corpus", "dataset", "document_split", "documents"),
    *("prepare", "python_library", "shards", "token_shard"),
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    module = importlib.import_module(f"training.{name}")
    assert doctest.testmod(module).failed == 0
