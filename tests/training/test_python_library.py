"""The embedded corpora: enough, clean, the same everywhere, and a clear word where absent."""

import sys

import pytest

from training import python_library
from training.corpus import load_corpus
from training.python_library import library_files, walk


@pytest.fixture(scope="module")
def code():
    return list(load_corpus("python-code"))


def test_there_is_enough_of_both(code):
    docs = list(load_corpus("python-docs"))
    assert len(docs) >= 70
    assert sum(len(d.text) for d in docs) > 400_000
    assert len(code) >= 450
    assert 8_000_000 < sum(len(d.text) for d in code) < 14_000_000


def test_documents_are_sorted_distinct_and_never_blank(code):
    for documents in (code, list(load_corpus("python-docs"))):
        found = [document.source for document in documents]
        assert found == sorted(set(found))
        assert all(document.text.strip() for document in documents)
        assert not any("\r" in document.text for document in documents)


def test_what_is_in_and_what_is_out(code):
    found = {document.source.removeprefix("python-code:") for document in code}
    wanted = {"argparse.py", "json/decoder.py", "asyncio/tasks.py", "encodings/utf_8.py"}
    assert wanted <= found
    assert "encodings/cp1252.py" not in found
    tops = {name.split("/")[0].removesuffix(".py") for name in found}
    assert tops <= sys.stdlib_module_names
    unwanted = {"test", "tests", "idle_test", "lib2to3", "ensurepip", "pydoc_data", "_vendor"}
    assert not unwanted & {part for name in found for part in name.split("/")}
    assert not any("site-packages" in name or "dist-packages" in name for name in found)


def test_only_the_librarys_own_modules_count(tmp_path, monkeypatch):
    for name in (
        *("json/a.py", "os.py", "sitecustomize.py", "_sysconfigdata_x.py", "json/test/t.py"),
        *("json/tests/t.py", "site-packages/json/x.py", "encodings/cp1.py", "encodings/hand.py"),
        *("json/__pycache__/c.py", "lib2to3/x.py", "json/data.txt", "test.py"),
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {name}\n", encoding="utf-8")
    table = '"""Python codec generated from mapping with gencodec.py."""\n'
    (tmp_path / "encodings/cp1.py").write_text(table, encoding="utf-8")
    monkeypatch.setattr(python_library.sysconfig, "get_path", lambda _: str(tmp_path))
    found = [path.relative_to(tmp_path).as_posix() for path in library_files()]
    assert found == ["encodings/hand.py", "json/a.py", "os.py"]
    assert [d.source for d in load_corpus("python-code")][1] == "python-code:json/a.py"


def test_a_library_without_sources_is_said_clearly(tmp_path, monkeypatch):
    zipped = tmp_path / "python311.zip"
    zipped.write_bytes(b"PK")
    for place in (zipped, tmp_path):
        monkeypatch.setattr(python_library.sysconfig, "get_path", lambda _, p=place: str(p))
        with pytest.raises(ValueError, match="needs the library's sources") as caught:
            list(load_corpus("python-code"))
        assert str(place) in str(caught.value)


def test_a_python_without_its_documentation_is_said_clearly(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data", None)
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(ValueError, match="needs the module pydoc_data") as caught:
        list(load_corpus("python-docs"))
    assert sys.executable in str(caught.value)


def test_walk_ignores_links_that_go_round(tmp_path):
    (tmp_path / "a.txt").write_text("x", encoding="utf-8")
    try:
        (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    except OSError:
        pytest.skip("this system does not allow links")
    assert [path.name for path in walk(tmp_path)] == ["a.txt"]
