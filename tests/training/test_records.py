"""Rows of parquet files, gzip'd files and Hugging Face datasets become documents."""

import gzip
import json
import os
import subprocess
import sys
import tracemalloc

import pytest

from training import records
from training.corpus import corpus_fingerprint, load_corpus
from training.documents import read_documents
from training.records import hub_rows, parquet_rows
from training.source_files import open_source

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

TEXTS = ["春眠不觉晓", "the cat sat\non the mat", "x" * 5000]


def write_parquet(path, columns, **options):
    parquet.write_table(pyarrow.table(columns), path, **options)
    return path


def refused(path, **options):
    with pytest.raises(ValueError, match=r".") as caught:
        list(read_documents(path, path.name, **options))
    return str(caught.value)


def test_parquet_rows_are_documents_across_row_groups(tmp_path):
    columns = {"text": TEXTS * 700, "url": [str(i) for i in range(2100)]}
    path = write_parquet(tmp_path / "a.parquet", columns, row_group_size=1500)
    documents = list(read_documents(path, "a.parquet"))
    assert [d.text for d in documents] == TEXTS * 700
    assert documents[1999].source == "a.parquet:2000"
    read = []
    list(read_documents(path, "a.parquet", on_read=read.append))
    assert abs(sum(read) - path.stat().st_size) <= 2


def test_only_the_column_of_the_text_is_read_and_in_small_batches(tmp_path):
    columns = {
        "text": [f"{i} a b " * 250 for i in range(20_000)],
        "junk": ["j" * 400 + str(i) for i in range(20_000)],
    }
    path = write_parquet(tmp_path / "a.parquet", columns, use_dictionary=False, compression="none")
    before = pyarrow.total_allocated_bytes()
    tracemalloc.start()
    try:
        arrow = [pyarrow.total_allocated_bytes() for _ in parquet_rows(path, "text")]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(arrow) == 20_000
    assert max(arrow) - before < 12_000_000  # all the texts are 40 MB
    assert peak < 8_000_000


def test_wrong_parquet_files_are_refused(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", {"txt": ["a"], "id": [7]})
    assert refused(path) == f"{path} has no 'text'; its keys: txt, id; did you mean text_key='txt'?"
    assert "row 1 of" in refused(path, text_key="id")
    assert "must be a string, got int" in refused(path, text_key="id")
    write_parquet(path, {"text": ["a", None]})
    assert refused(path) == f"row 2 of {path}: 'text' must be a string, got null"
    data = path.read_bytes()
    for damaged in (data[:-9], data[9:], b"", b"PAR1"):
        path.write_bytes(damaged)
        assert f"{path} cannot be read as parquet" in refused(path)


def test_a_missing_library_says_what_to_install(tmp_path, monkeypatch):
    path = write_parquet(tmp_path / "a.parquet", {"text": ["a"]})
    for name in ("pyarrow", "pyarrow.parquet", "pyarrow.lib", "datasets"):
        monkeypatch.setitem(sys.modules, name, None)
    assert "pip install 'llm-from-zero[data]'" in refused(path)
    with pytest.raises(ValueError, match=r"needs datasets, .* pip install 'llm-from-zero\[data\]'"):
        hub_rows("hf:somebody/something", "text")


@pytest.mark.parametrize("name", ["a.jsonl.gz", "A.JSONL.GZ", "a.txt.gz"])
def test_gzipped_files_are_read_like_plain_ones(tmp_path, name):
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    is_text = ".txt" in name
    (tmp_path / name).write_bytes(gzip.compress(lines.encode()))
    found = [document.text for document in load_corpus(tmp_path)]
    assert found == ([lines] if is_text else TEXTS)


def test_a_gzipped_file_reports_what_it_read_from_the_disk(tmp_path):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(os.urandom(300_000).hex().encode()))
    read = []
    list(read_documents(path, "a", on_read=read.append))
    assert sum(read) == path.stat().st_size
    assert len(read) > 3


def test_closing_a_gzipped_file_closes_the_file_below(tmp_path):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"text"))
    with open_source(path) as file:
        below = file.fileobj
        assert file.read() == b"text"
    assert below.closed


def test_a_damaged_gzipped_file_is_refused(tmp_path):
    path = tmp_path / "a.txt.gz"
    data = gzip.compress(os.urandom(50_000).hex().encode())
    flipped = bytearray(data)
    flipped[30_000] ^= 1
    for damaged in (data[:-9], data[: len(data) // 2], b"plain text", bytes(flipped)):
        path.write_bytes(damaged)
        assert f"{path} is not a whole gzip file" in refused(path)


def test_a_decompression_bomb_takes_no_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("training.documents.MAX_DOCUMENT_CHARS", 1 << 16)
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"a" * (40 << 20)))
    tracemalloc.start()
    try:
        assert sum(len(d.text) for d in read_documents(path, "a")) == 40 << 20
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6 << 20


@pytest.mark.parametrize("spec", ["hf:", "hf::train", "hf:a:b:c:d"])
def test_a_wrong_way_to_name_a_dataset(spec):
    with pytest.raises(ValueError, match="must be hf:NAME, hf:NAME:CONFIG:SPLIT"):
        list(load_corpus(spec))


DATASETS = """
import sys
from pathlib import Path
from training.corpus import load_corpus
folder = sys.argv[1]
print([d.text for d in load_corpus(f"hf:{folder}")])
print([(d.text, d.source.removeprefix("hf:" + folder)) for d in load_corpus(f"hf:{folder}::test")])
for spec, key in ((f"hf:{folder}:test", "text"), (f"hf:{folder}", "txt"), ("hf:no/such", "text"),
                  ("hf:./nowhere", "text"), (f"hf:{folder}::validation", "text")):
    try:
        list(load_corpus(spec, text_key=key))
        print("nothing refused")
    except ValueError as error:
        print(str(error).replace(folder, "FOLDER").splitlines()[0])
"""


@pytest.mark.slow
def test_datasets_by_name_offline(tmp_path):
    """In a process of its own: the library decides at import whether there is a network."""
    pytest.importorskip("datasets")
    folder = tmp_path / "poems"
    folder.mkdir()
    for split, texts in (("train", TEXTS[:2]), ("test", ["明月几时有"])):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8", newline="\n")
    result = subprocess.run(
        [sys.executable, "-c", DATASETS, folder.as_posix()],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONUTF8": "1"},
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == repr(TEXTS[:2])
    assert lines[1] == "[('明月几时有', '::test:1')]"
    assert "a split follows a second colon: hf:FOLDER::test" in lines[2]
    assert lines[3] == "hf:FOLDER has no 'txt'; its keys: text; did you mean text_key='text'?"
    assert "hf:no/such cannot be loaded" in lines[4]
    assert "without a network, use a local folder (hf:./folder), or parquet" in lines[4]
    assert lines[5] == "hf:./nowhere: there is no folder ./nowhere"
    assert "hf:FOLDER::validation cannot be loaded" in lines[6]
    assert len(lines) == 7


def test_the_fingerprint_of_a_local_dataset_sees_its_files(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"text": "a"}\n', encoding="utf-8")
    before = corpus_fingerprint(f"hf:{tmp_path}")
    assert corpus_fingerprint(f"hf:{tmp_path}") == before
    (tmp_path / "train.jsonl").write_text('{"text": "ab"}\n', encoding="utf-8")
    assert corpus_fingerprint(f"hf:{tmp_path}") != before
    assert corpus_fingerprint("hf:a/b") != corpus_fingerprint("hf:a/c")


def test_a_stream_that_breaks_says_after_which_row():
    def rows():
        yield {"text": "a"}
        raise ConnectionError("reset by peer")

    with pytest.raises(ValueError, match="hf:x cannot be read after row 1: reset by peer"):
        list(records._rows_of(rows(), "hf:x"))
