"""Datasets of the hub: both passes read one version, and the manifest says which."""

import sys
from types import SimpleNamespace

import pytest

from foundation.files import read_manifest
from fromzero.main import main
from training import dataset_versions
from training.corpus import load_corpus
from training.dataset_versions import pinned_once, versions_of, with_versions
from training.prepare import prepare_data
from training.records import split_hub


class Rows(list):
    column_names = ("text",)


@pytest.fixture
def hub(monkeypatch):
    """A hub whose dataset changes between any two questions, and a library that reads it."""
    calls, commits = [], iter(f"{n:040x}" for n in range(1, 99))

    def load_dataset(name, config, *, split, streaming, revision):
        calls.append((name, config, split, revision))
        return Rows({"text": f"the moon of {revision[-2:]} number {i}\n"} for i in range(60))

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))

    def commit(name, revision=None):
        return revision or next(commits)

    monkeypatch.setattr(dataset_versions.pinned_once, "__defaults__", (commit,))
    return calls


FIRST = f"{1:040x}"


def test_both_passes_read_one_version_and_the_manifest_says_which(hub, tmp_path, capsys):
    out = tmp_path / "data"
    words = ["data", "prepare", "hf:a/b:c:test", "--out", str(out), "--vocab-size", "270"]
    assert main([*words, "--workers", "1"]) == 0
    assert hub == [("a/b", "c", "test", FIRST)] * 2  # to learn the tokenizer, and to tokenize
    manifest = read_manifest(out)
    assert manifest["revisions"] == {"hf:a/b:c:test": FIRST}
    assert manifest["corpus"] == "hf:a/b:c:test"
    assert f"revision   hf:a/b:c:test: commit {FIRST}" in capsys.readouterr().out
    # what is there serves without asking again, although there is a newer version
    assert main([*words, "--workers", "1"]) == 0
    assert len(hub) == 2


def test_a_version_of_ones_own_is_read(hub, tmp_path):
    prepare_data("hf:a/b@v1", "characters", tmp_path / "data")
    assert {call[3] for call in hub} == {"v1"}
    assert read_manifest(tmp_path / "data")["revisions"] == {"hf:a/b@v1": "v1"}


def test_after_an_interruption_the_version_is_the_same(hub, tmp_path, monkeypatch):
    def die(*_, **__):
        (tmp_path / "data.parts" / "part-000000.safetensors").write_bytes(b"")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("training.prepare.write_shards", die)
        with pytest.raises(KeyboardInterrupt):
            prepare_data("hf:a/b", "bpe", tmp_path / "data", vocab_size=270)
    (tmp_path / "data.parts" / "part-000000.safetensors").unlink()
    prepare_data("hf:a/b", "bpe", tmp_path / "data", vocab_size=270)
    assert {call[3] for call in hub} == {FIRST}
    assert read_manifest(tmp_path / "data")["revisions"] == {"hf:a/b": FIRST}


def test_another_corpus_asks_anew(tmp_path):
    answers = iter("ab")
    ask = lambda name, version: next(answers)  # noqa: E731
    assert pinned_once(tmp_path, "1", ["hf:x"], ask)[1] == {"hf:x": "a"}
    assert pinned_once(tmp_path, "1", ["hf:x"], ask)[1] == {"hf:x": "a"}
    assert pinned_once(tmp_path, "2", ["hf:x"], ask)[1] == {"hf:x": "b"}


def test_nothing_is_asked_where_there_is_no_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine@home").mkdir()
    (tmp_path / "book.txt").write_text("moon", encoding="utf-8")

    def ask(name, version):
        raise AssertionError(name)

    specs = ["python-docs+book.txt", "hf:mine@home", "hf:./nowhere", tmp_path / "book.txt"]
    assert pinned_once(tmp_path, "key", specs, ask) == (specs, {})
    assert not (tmp_path / "revisions.json").exists()
    assert versions_of(["hf:a/b"], lambda name, version: None) == {}


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("hf:a/b", "hf:a/b@X"),
        ("hf:a/b@main", "hf:a/b@X"),
        ("hf:a/b:c", "hf:a/b@X:c"),
        ("hf:a/b@v1::test", "hf:a/b@X::test"),
        ("hf:a/b@v1:c:test", "hf:a/b@X:c:test"),
    ],
)
def test_the_version_goes_behind_the_name(spec, expected):
    assert with_versions(spec, {spec: "X"}) == [expected]
    name, version, *rest = split_hub(expected)
    assert (name, version) == ("a/b", "X")
    assert rest == list(split_hub(spec)[2:])
    assert with_versions(f"a.txt+{spec}", {spec: "X"}) == ["a.txt", expected]


def test_the_corpus_is_read_at_the_version_written(hub):
    texts = [document.text for document in load_corpus("hf:a/b@beef::train")]
    assert texts[0] == "the moon of ef number 0\n"
    assert hub == [("a/b", None, "train", "beef")]
