"""`fromzero data prepare`, and `fromzero train` on what it made: alone, or mixed by weight."""

import json
import re

import pytest

from foundation.files import MANIFEST
from fromzero.main import main
from gpt_model.model_directory import find_model_directory
from tokenization.tokenizer import Tokenizer
from training.token_shard import TokenShard

TINY = ["--n-layers", "1", "--dim", "16", "--n-heads", "2", "--max-seq-len", "16", "--no-plot"]
SHORT = ["--steps", "6", "--batch-size", "4", "--eval-every", "3", "--sample-every", "6"]


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").mkdir()
    for number in range(12):
        text = "".join(f"line {number} says {i * number % 97} 你好\n" for i in range(60))
        (tmp_path / "texts" / f"{number}.txt").write_text(text, encoding="utf-8", newline="\n")
    lines = [json.dumps({"text": f"row {i}: numbers {i * 7 % 31}"}) for i in range(400)]
    (tmp_path / "rows.jsonl").write_text("\n".join([*lines, *lines[:5]]), encoding="utf-8")
    return tmp_path


@pytest.fixture
def fromzero(workplace, capsys):
    def run(*words, expect=0):
        code = main(list(words))
        captured = capsys.readouterr()
        assert code == expect, captured.err
        return captured.out, captured.err

    return run


def test_sources_become_a_directory_and_a_report(fromzero, workplace):
    options = ["--vocab-size", "280", "--dedup", "--min-chars", "5"]
    out, err = fromzero("data", "prepare", "texts", "rows.jsonl", "--out", "data/both", *options)
    assert err == ""
    with TokenShard.open("data/both") as train, TokenShard.open("data/both", "val") as val:
        assert f"{train.n_tokens:,} to learn from, {val.n_tokens:,} to validate on" in out
        assert len(train.document_starts) + len(val.document_starts) == 412
    assert "dropped    5 documents" in out
    assert "dedup: dropped 5 of 417 documents" in out
    assert "rows.jsonl:401: seen before: 'row 0: numbers 0'" in out
    assert re.search(r"time +[\d.]+ s, [\d.]+ MB/s", out)
    assert re.search(r"[\d.]+ bytes per token, vocabulary 280", out)
    assert "go on: fromzero train --data data" in out
    again, _ = fromzero("data", "prepare", "texts", "rows.jsonl", "--out", "data/both", *options)
    assert "nothing has changed" in again
    assert "dedup: dropped 5 of 417 documents" in again


def test_training_takes_the_directory(fromzero, workplace, same_models):
    fromzero("data", "prepare", "texts", "--out", "made", "--vocab-size", "290")
    out, err = fromzero("train", "--data", "made", "--out", "runs/a", *TINY, *SHORT)
    assert err == ""
    assert "290 tokens" in out
    assert not (workplace / "data").exists()
    run = find_model_directory(workplace / "runs/a")
    assert Tokenizer.load(run).fingerprint == Tokenizer.load("made").fingerprint
    options = ["--vocab-size", "290", "--out", "runs/b", *TINY, *SHORT]
    fromzero("train", "--data", "texts", *options)
    assert same_models("runs/a", "runs/b")
    fromzero("train", "--resume", "runs/a")


def test_texts_are_mixed_by_weight_with_one_vocabulary(fromzero, workplace, same_models):
    spec = "texts@0.75+rows.jsonl@0.25"
    options = ["--vocab-size", "300", *TINY, *SHORT]
    out, err = fromzero("train", "--data", spec, "--out", "runs/a", *options)
    assert err == ""
    assert re.search(r"mixture +texts 75\.0% \([\d.]+ times\), rows\.jsonl 25\.0% \(", out)
    for name in ("texts", "rows.jsonl"):
        assert f"held-out tokens of {name}:" in out
    folders = [path for path in (workplace / "data").rglob(MANIFEST)]
    assert len(folders) == 2
    assert len({Tokenizer.load(path.parent).fingerprint for path in folders}) == 1
    before = {path: path.stat().st_mtime_ns for path in folders}
    fromzero("train", "--data", spec, "--out", "runs/b", *options)
    assert {path: path.stat().st_mtime_ns for path in folders} == before
    assert same_models("runs/a", "runs/b")
    fromzero("train", "--data", "texts@1+rows.jsonl@3", "--out", "runs/c", *options)
    assert not same_models("runs/a", "runs/c")


def test_a_resumed_mixture_is_the_same_run(fromzero, workplace, monkeypatch, same_models):
    options = ["--data", "texts@2+rows.jsonl@1", "--vocab-size", "300", *TINY, *SHORT]
    fromzero("train", "--out", "runs/whole", *options)
    from training.trainer import Trainer

    monkeypatch.setattr(Trainer, "_stopping", property(lambda self: self.state.step >= 4))
    fromzero("train", "--out", "runs/cut", *options, expect=130)
    monkeypatch.undo()
    monkeypatch.chdir(workplace)
    _, err = fromzero("train", "--resume", "runs/cut", "--data", "texts@1+rows.jsonl@1", expect=2)
    assert "data.corpus" in err
    fromzero("train", "--resume", "runs/cut")
    assert same_models("runs/whole", "runs/cut")


def test_prepared_directories_are_mixed_when_their_tokenizers_agree(fromzero, workplace):
    fromzero("data", "prepare", "texts", "--out", "one", "--vocab-size", "290")
    fromzero("data", "prepare", "rows.jsonl", "--out", "two", "--tokenizer", "one")
    out, _ = fromzero("train", "--data", "one@1+two@1", "--out", "runs/a", *TINY, *SHORT)
    assert "mixture    one 50.0%" in out
    out, _ = fromzero("train", "--data", "one@1+rows.jsonl@1", "--out", "runs/b", *TINY, *SHORT)
    assert "rows.jsonl 50.0%" in out
    fromzero("data", "prepare", "rows.jsonl", "--out", "other", "--vocab-size", "270")
    _, err = fromzero("train", "--data", "one@1+other@1", *TINY, *SHORT, expect=2)
    assert "one and other have different tokenizers (290 and 270 tokens)" in err
    _, err = fromzero("train", "--data", "one", "--tokenizer", "other", *TINY, *SHORT, expect=2)
    assert "one and other have different tokenizers" in err
    _, err = fromzero("train", "--data", "one+two", *TINY, *SHORT, expect=2)
    assert "say how much of each: DIR@0.7+DIR@0.3" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "SOURCES must be given"),
        (["texts"], "--out must be given"),
        (["texts", "--out", "texts"], "texts exists and does not hold token shards"),
        (["nowhere.txt", "--out", "d"], "no such corpus: 'nowhere.txt'"),
        (["texts", "--out", "d", "--tokenizer", "bpf"], "did you mean 'bpe'?"),
        (["texts", "--out", "d", "--workers", "0"], "workers must be an integer >= 1, got 0"),
        (["texts", "--out", "d", "--val-fraction", "1"], "val_fraction must be a finite number"),
        (["texts", "--out", "d", "--vocab-size", "9"], "vocab_size must be at least 257"),
        (["texts", "--out", "d", "--min-chars", "9", "--max-chars", "8"], "got 9 and 8"),
        (["texts", "--out", "d", "--max-symbol-share", "nan"], "max_symbol_share must be"),
        (["texts", "--out", "d", "--min-chars", "10000000"], "0 tokens"),
        (["texts@1+rows.jsonl@2", "--out", "d"], "weights belong to `fromzero train --data`"),
        (["rows.jsonl", "--out", "d", "--text-key", "txt"], "did you mean text_key='text'?"),
        (["texts", "--out", "rows.jsonl"], "it is a file"),
        (["texts", "--out", "rows.jsonl/d"], "rows.jsonl"),
        (["hf:./nowhere", "--out", "d"], "hf:./nowhere: there is no folder"),
        (["texts", "--out", "d", "--dedupe"], "did you mean --dedup?"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(fromzero, workplace, words, message):
    before = sorted(path.name for path in workplace.iterdir())
    out, err = fromzero("data", "prepare", *words, expect=2)
    assert len(err.splitlines()) == 1
    assert message in err
    assert sorted(path.name for path in workplace.iterdir()) == before


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("texts@0.5+rows.jsonl", "give every source"),
        ("texts@0.5", "only one source"),
        ("texts@1+rows.jsonl@0", "must be a finite number > 0"),
        ("texts@1+nowhere@1", "no such corpus: 'nowhere'"),
    ],
)
def test_wrong_mixtures_are_one_line(fromzero, data, message):
    _, err = fromzero("train", "--data", data, *TINY, *SHORT, expect=2)
    assert message in err.splitlines()[-1]


def test_an_interrupt_says_how_to_go_on(fromzero, workplace, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("training.prepare.write_shards", interrupted)
    _, err = fromzero("data", "prepare", "texts", "--out", "d", "--vocab-size", "280", expect=130)
    assert "to go on: the same command again" in err
