"""Tokenizing in parts: the same bytes for any number of workers, and after any sudden death."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from tokenization.tokenizer import Tokenizer
from training import token_parts, unfinished_work
from training.documents import Document
from training.prepare import prepare_data
from training.token_parts import encode_parts, read_tokens

SCRIPT = Path(__file__).with_name("prepare_and_die.py")
TEXTS = [f"page {i}: " + "the cat sat on the mat, 春眠不觉晓 " * (i % 11 * 4) for i in range(120)]
DOCUMENTS = [Document(text, f"page {i}") for i, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def bpe():
    return Tokenizer.train_bpe(TEXTS, 320)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(token_parts, "PART_CHARS", 3000)


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for i, text in enumerate(TEXTS):
        (folder / f"{i:03}.txt").write_text(text, encoding="utf-8", newline="\n")
    return folder


@pytest.fixture
def counted(monkeypatch):
    """How many documents are really tokenized."""
    calls = []
    encode = token_parts.encode_documents

    def counting(documents, tokenizer):
        calls.extend(document.source for document in documents)
        return encode(documents, tokenizer)

    monkeypatch.setattr(token_parts, "encode_documents", counting)
    return calls


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def run_script(*arguments):
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )


def test_parts_hold_every_document_once_and_in_order(tmp_path, bpe):
    parts = list(encode_parts(DOCUMENTS, bpe, tmp_path / "parts"))
    assert len(parts) > 5
    tokens = np.concatenate([read_tokens(part) for part in parts])
    lengths = np.concatenate([part.lengths for part in parts])
    pieces = np.split(tokens, np.cumsum(lengths)[:-1])
    assert [piece.tolist() for piece in pieces] == [bpe.encode(t) + [bpe.end_id] for t in TEXTS]
    sizes = np.concatenate([part.sizes for part in parts])
    assert sizes.tolist() == [len(text.encode()) for text in TEXTS]


def test_any_number_of_workers_writes_the_same_bytes(corpus, tmp_path, bpe):
    written = []
    for workers in (1, 2, 3):
        out = tmp_path / str(workers)
        prepare_data(corpus, bpe, out, workers=workers)
        assert not out.with_name(f"{workers}.parts").exists()
        written.append(contents(out))
    assert written[0] == written[1] == written[2]


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_half_way_it_goes_on_from_the_finished_parts(corpus, tmp_path, counted, workers):
    prepare_data(corpus, "bpe", tmp_path / "whole", vocab_size=300)
    everything = len(counted)
    result = run_script(corpus, tmp_path / "cut", workers, 10)
    assert result.returncode not in (0, 1), result.stderr
    assert not (tmp_path / "cut").exists()
    done = list((tmp_path / "cut.parts").glob("part-*.safetensors"))
    assert len(done) >= 10
    counted.clear()
    prepare_data(corpus, "bpe", tmp_path / "cut", vocab_size=300)
    assert 0 < len(counted) <= everything * 0.7
    assert "".join(counted).count("000.txt") == 0
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert not (tmp_path / "cut.parts").exists()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_no_worker_outlives_a_killed_parent(corpus, tmp_path):
    result = run_script(corpus, tmp_path / "cut", 2, 2)
    pids = result.stdout.split()
    assert len(pids) == 2

    def is_running(pid):
        try:
            state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1]
        except OSError:
            return False
        return state.split()[0] != "Z"

    for _ in range(100):
        if not any(map(is_running, pids)):
            return
        time.sleep(0.05)
    pytest.fail(f"still running: {pids}")


def test_a_worker_that_dies_is_reported(tmp_path):
    result = run_script(tmp_path, tmp_path / "parts", 2, "worker")
    assert result.returncode == 1
    assert "ValueError: one of 2 worker processes died" in result.stderr


def test_a_document_that_cannot_be_encoded_is_named_by_a_worker_too(tmp_path):
    tokenizer = Tokenizer.characters(["ab"])
    documents = [Document("ab" * 2000, "good"), Document("abz" * 2000, "bad.txt")]
    with pytest.raises(ValueError, match=r"bad\.txt: .*'z'.*U\+007A"):
        list(encode_parts(documents, tokenizer, tmp_path / "parts", workers=2))


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "foreign"])
def test_a_damaged_part_alone_is_made_again(tmp_path, bpe, counted, damage):
    folder = tmp_path / "parts"
    parts = list(encode_parts(DOCUMENTS, bpe, folder))
    expected = contents(folder)
    path = parts[2].path
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 4
    path.write_bytes({"truncate": data[:-9], "empty": b"", "foreign": b"x" * 99}.get(damage, data))
    counted.clear()
    list(encode_parts(DOCUMENTS, bpe, folder))
    assert len(counted) == len(parts[2].lengths)
    assert contents(folder) == expected


def test_changed_text_or_another_tokenizer_is_never_taken_from_old_parts(tmp_path, bpe, counted):
    folder = tmp_path / "parts"
    list(encode_parts(DOCUMENTS, bpe, folder))
    changed = [*DOCUMENTS[:-1], Document(TEXTS[-1].replace("cat", "dog"), "page")]
    counted.clear()
    parts = list(encode_parts(changed, bpe, folder))
    assert 0 < len(counted) < len(DOCUMENTS) / 3
    tokens = np.concatenate([read_tokens(part) for part in parts])
    assert "dog" in bpe.decode(tokens[-200:].tolist())
    counted.clear()
    list(encode_parts(changed, Tokenizer.train_bpe(TEXTS, 330), folder))
    assert len(counted) == len(DOCUMENTS)


def test_the_border_between_documents_is_part_of_the_content(tmp_path, counted):
    tokenizer = Tokenizer.characters(["abc"])
    for first, second in (("ab", "c"), ("a", "bc")):
        parts = list(encode_parts([Document(first, ""), Document(second, "")], tokenizer, tmp_path))
        assert parts[0].lengths.tolist() == [len(first) + 1, len(second) + 1]


def test_very_short_documents_are_boxed_by_number(tmp_path, bpe, monkeypatch):
    monkeypatch.setattr(token_parts, "PART_DOCUMENTS", 50)
    parts = list(encode_parts([Document("a", "")] * 120, bpe, tmp_path / "parts"))
    assert [len(part.lengths) for part in parts] == [50, 50, 20]


def test_a_mistake_in_the_middle_keeps_what_is_finished(corpus, tmp_path, counted):
    (corpus / "099.txt").write_bytes(b"good \xfd bad")
    with pytest.raises(ValueError, match=r"099\.txt is not valid UTF-8"):
        prepare_data(corpus, Tokenizer.train_bpe(TEXTS, 300), tmp_path / "data")
    first = len(counted)
    assert first > 50
    (corpus / "099.txt").write_text("the cat", encoding="utf-8")
    counted.clear()
    prepare_data(corpus, Tokenizer.train_bpe(TEXTS, 300), tmp_path / "data")
    assert len(counted) < 50
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "data"]


def test_what_a_kill_leaves_of_half_written_files_is_no_stranger(corpus, tmp_path, bpe):
    """The safetensors library writes .tmpXXXXXX beside its file; we write NAME.tmp-XXXXXXXX."""
    names = [".tmp2Al4q0", "part-000001.safetensors.tmp-0a1b2c3d", "tokenizer.json.tmp-0a1b2c3d"]
    (tmp_path / "data.parts").mkdir()
    for name in names:
        (tmp_path / "data.parts" / name).write_bytes(b"half")
    prepare_data(corpus, bpe, tmp_path / "data")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "data"]


def test_an_early_mistake_leaves_nothing(corpus, tmp_path):
    (corpus / "000.txt").write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(ValueError, match=r"looks like UTF-16"):
        prepare_data(corpus, "bpe", tmp_path / "data", vocab_size=300)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


def test_two_processes_at_one_directory_and_somebody_elses_folder(corpus, tmp_path, bpe):
    folder = tmp_path / "data.parts"
    folder.mkdir()
    with FileLock(folder / unfinished_work.LOCK):
        with pytest.raises(ValueError, match=r"another process is writing .*data; wait"):
            prepare_data(corpus, bpe, tmp_path / "data")
    (folder / "diary.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match=r"holds diary\.txt; move it"):
        prepare_data(corpus, bpe, tmp_path / "data")
    assert (folder / "diary.txt").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("workers", [0, -1, 1.5, True])
def test_workers_must_be_a_positive_integer(corpus, tmp_path, bpe, workers):
    with pytest.raises(ValueError, match="workers must be an integer"):
        prepare_data(corpus, bpe, tmp_path / "data", workers=workers)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]
