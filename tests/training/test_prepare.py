"""The second run starts at once; anything that changes the tokens makes them again."""

import os
import re
import warnings

import pytest

from foundation.files import MANIFEST
from tokenization.tokenizer import Tokenizer
from training import corpus, prepare
from training.prepare import prepare_data


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for i in range(30):
        text = f"Page {i}. The cat sat on the mat.\n"
        (folder / f"{i:02}.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def made(monkeypatch):
    """Count how often shards are really written."""
    calls = []
    write = prepare.write_shards

    def counting(*arguments, **options):
        calls.append(options["facts"]["key"])
        return write(*arguments, **options)

    monkeypatch.setattr(prepare, "write_shards", counting)
    return calls


def run(*arguments, **options):
    train, val = prepare_data(*arguments, **options)
    with train, val:
        return train.tokens.tolist(), val.tokens.tolist()


def test_the_second_time_nothing_is_made(source, tmp_path, made, monkeypatch):
    first = run(source, "bpe", tmp_path / "data", vocab_size=280)
    monkeypatch.setattr(prepare, "load_corpus", None)  # not even read
    monkeypatch.setattr(prepare.Tokenizer, "train_bpe", None)
    assert run(source, "bpe", tmp_path / "data", vocab_size=280) == first
    assert len(made) == 1


def test_the_shards_belong_to_the_tokenizer_beside_them(source, tmp_path):
    train, val = prepare_data(source, "bpe", tmp_path / "data", vocab_size=280)
    with train, val:
        tokenizer = Tokenizer.load(tmp_path / "data")
        assert tokenizer.vocab_size == train.vocab_size == 280
        assert train.tokenizer_fingerprint == tokenizer.fingerprint
        end = int(train.document_starts[1])
        assert tokenizer.decode(train.tokens[:end].tolist()).startswith("Page 0. The cat")
        assert (train.path.name, val.path.name) == ("train.bin", "val.bin")


def test_a_given_tokenizer_equals_its_kind_trained_on_the_same_text(source, tmp_path, made):
    texts = [document.text for document in corpus.load_corpus(source)]
    tokenizer = Tokenizer.train_bpe(texts, 280)
    given = run(source, tokenizer, tmp_path / "given")
    assert run(source, "bpe", tmp_path / "kind", vocab_size=280) == given
    assert run(source, Tokenizer.train_bpe(texts, 280), tmp_path / "given") == given
    assert len(made) == 2


def options_and_changes(source):
    other = Tokenizer.characters(["Other characters: cat mat Page Thesno.\n0123456789"])
    return [
        {"tokenizer": "characters"},
        {"vocab_size": 281},
        {"tokenizer": other},
        {"val_fraction": 0.2},
        {"errors": "replace"},
        {"text_key": "body"},
        {"validation": str(source / "00.txt")},
        {"spec": f"{source / '*.txt'}"},
    ]


@pytest.mark.filterwarnings("ignore:1 of 1 validation documents")
@pytest.mark.parametrize("number", range(8))
def test_whatever_changes_the_tokens_makes_them_again(source, tmp_path, made, number):
    base = {"spec": source, "tokenizer": "bpe", "vocab_size": 280}
    changed = {**base, **options_and_changes(source)[number]}
    run(directory=tmp_path / "data", **base)
    run(directory=tmp_path / "data", **changed)
    assert len(made) == 2
    assert made[0] != made[1]
    run(directory=tmp_path / "data", **changed)
    assert len(made) == 2


def test_a_changed_added_or_touched_file_makes_them_again(source, tmp_path, made):
    before = run(source, "characters", tmp_path / "data")
    (source / "new.txt").write_text("Another page. " * 9, encoding="utf-8")
    after = run(source, "characters", tmp_path / "data")
    assert sum(map(len, after)) == sum(map(len, before)) + 9 * 14 + 1
    status = (source / "new.txt").stat()
    os.utime(source / "new.txt", ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))
    run(source, "characters", tmp_path / "data")
    assert len(made) == 3


def test_the_vocabulary_size_does_not_matter_to_characters(source, tmp_path, made):
    run(source, "characters", tmp_path / "data", vocab_size=300)
    run(source, "characters", tmp_path / "data", vocab_size=400)
    assert len(made) == 1


def test_another_tokenizer_or_validation_corpus_makes_them_again(source, tmp_path, made):
    texts = [document.text for document in corpus.load_corpus(source)]
    for vocab_size in (280, 290):
        run(source, Tokenizer.train_bpe(texts, vocab_size), tmp_path / "data")
    assert len(made) == 2
    for name in ("one", "two"):
        (tmp_path / f"{name}.txt").write_text(f"Chapter {name}.", encoding="utf-8")
        run(source, "bpe", tmp_path / "data", vocab_size=280, validation=tmp_path / f"{name}.txt")
    assert len(made) == 4


def test_a_new_format_makes_them_again(source, tmp_path, made, monkeypatch):
    run(source, "characters", tmp_path / "data")
    monkeypatch.setattr(prepare, "FORMAT", prepare.FORMAT + 1)
    run(source, "characters", tmp_path / "data")
    assert len(made) == 2


@pytest.mark.parametrize("name", ["train.bin", "val.documents.npy", "tokenizer.json"])
def test_damage_is_said_and_repaired(source, tmp_path, made, name):
    expected = run(source, "characters", tmp_path / "data")
    path = tmp_path / "data" / name
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.warns(UserWarning, match=re.escape(name) + " is damaged.* are written again"):
        assert run(source, "characters", tmp_path / "data") == expected
    assert len(made) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(source, "characters", tmp_path / "data")


def test_verify_false_does_not_read_the_files(source, tmp_path, made, monkeypatch):
    run(source, "characters", tmp_path / "data")
    monkeypatch.setattr(prepare, "verify_manifest", None)
    run(source, "characters", tmp_path / "data", verify=False)
    assert len(made) == 1


def test_training_on_the_validation_file_warns_every_time(source, tmp_path):
    file = source / "03.txt"
    for _ in range(2):
        with pytest.warns(UserWarning, match="1 of 1 validation documents .*the same file twice"):
            run(source, "characters", tmp_path / "data", validation=file)
    copy = tmp_path / "copy.txt"
    copy.write_bytes(file.read_bytes())  # under another name too
    with pytest.warns(UserWarning, match="1 of 1 validation documents"):
        run(source, "characters", tmp_path / "data", validation=copy)


def test_a_validation_corpus_of_its_own(source, tmp_path):
    other = tmp_path / "验证.txt"
    other.write_text("验证集有自己的字。", encoding="utf-8")
    train, val = prepare_data(source, "characters", tmp_path / "data", validation=other)
    with train, val:
        assert len(train.document_starts) == 30
        tokenizer = Tokenizer.load(tmp_path / "data")
        assert tokenizer.decode(val.tokens[:-1].tolist()) == "验证集有自己的字。"


def test_mistakes_are_said_before_any_work(source, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "train_tokenizer", None)
    message = "tokenizer must be one of characters, bpe, bpe:gpt-2.*; got 'bpe2'; did you mean"
    with pytest.raises(ValueError, match=message):
        prepare_data(source, "bpe2", tmp_path / "data")
    with pytest.raises(ValueError, match="vocab_size must be an integer >= 1, got 0"):
        prepare_data(source, "bpe", tmp_path / "data", vocab_size=0)
    with pytest.raises(ValueError, match="val_fraction must be .* got 2.0"):
        prepare_data(source, "bpe", tmp_path / "data", val_fraction=2.0)
    with pytest.raises(ValueError, match="no such corpus: 'python-dcos'"):
        prepare_data("python-dcos", "bpe", tmp_path / "data")
    with pytest.raises(ValueError, match="corpus exists and does not hold token shards"):
        prepare_data(source, "bpe", source)
    assert not (tmp_path / "data").exists()
    assert len(list(source.iterdir())) == 30


def test_a_damaged_manifest_is_refused_rather_than_replaced(source, tmp_path):
    run(source, "characters", tmp_path / "data")
    (tmp_path / "data" / MANIFEST).write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"does not hold token shards .*not valid JSON"):
        prepare_data(source, "characters", tmp_path / "data")
