"""`fromzero tokenizer train`: a file others read, a table that is right, mistakes in one line."""

import json
import re
import time

import pytest
import tokenizers

from fromzero.main import main
from fromzero.tokenizer_train import samples
from tokenization.tokenizer import Tokenizer

COMMAND = ["tokenizer", "train"]


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.jsonl"
    lines = [f"明月几时有，把酒问青天。The {i}th moon of {i * 7 % 50} rose.\n" for i in range(400)]
    path.write_text("\n".join(json.dumps({"text": line}) for line in lines), encoding="utf-8")
    return path


def test_a_tokenizer_is_learned_saved_and_measured(capsys, corpus, tmp_path):
    out = tmp_path / "tok"
    options = ["--vocab-size", "320", "--special", "<|im_end|>", "--out", str(out)]
    assert main([*COMMAND, str(corpus), *options]) == 0
    printed = capsys.readouterr().out
    tokenizer = Tokenizer.load(out)
    assert tokenizer.vocab_size == 320
    assert list(tokenizer.special_tokens) == ["<|endoftext|>", "<|im_end|>"]
    assert tokenizers.Tokenizer.from_file(str(out / "tokenizer.json")).get_vocab_size() == 320
    # the held-out row, counted again: every 20th document
    texts = [json.loads(line)["text"] for line in corpus.read_text(encoding="utf-8").split("\n")]
    held = texts[19::20]
    n_bytes = sum(len(text.encode()) for text in held)
    ours = n_bytes / sum(len(tokenizer.encode(text)) for text in held)
    row = re.search(r"(?m)^your text, held out +(\S+) +(\S+) +(\S+)$", printed)
    assert row
    assert row.groups() == ("1.00", f"{n_bytes / sum(map(len, held)):.2f}", f"{ours:.2f}")
    learned = [text for number, text in enumerate(texts, 1) if number % 20]
    special = ["<|endoftext|>", "<|im_end|>"]
    assert Tokenizer.train_bpe(learned, 320, special).fingerprint == tokenizer.fingerprint
    assert re.search(r"(?m)^Chinese +1\.00 +[12]\.\d\d +\d", printed)
    assert re.search(r"(?m)^code +1\.00 +1\.0\d +\d", printed)
    assert "fromzero train --data" in printed


def test_a_split_that_llama_cpp_knows_goes_all_the_way_to_gguf(capsys, corpus, tmp_path):
    gguf = pytest.importorskip("gguf")
    tok, run, file = tmp_path / "tok", tmp_path / "run", tmp_path / "m.gguf"
    options = ["--vocab-size", "300", "--split", "llama-bpe", "--out", str(tok)]
    assert main([*COMMAND, str(corpus), *options]) == 0
    train = ["train", "--data", str(corpus), "--data-dir", str(tmp_path / "data"), "--steps", "1"]
    small = ["--n-layers", "1", "--dim", "32", "--n-heads", "2", "--max-seq-len", "16"]
    for tokenizer in (str(tok), "bpe:qwen2"):
        words = ["--tokenizer", tokenizer, "--vocab-size", "300", "--out", str(run), "--overwrite"]
        assert main([*train, *small, *words, "--track", "none"]) == 0, capsys.readouterr().err
        export = ["export", str(run), "--to", str(file), "--format", "gguf"]
        assert main(export) == 0, capsys.readouterr().err
        field = gguf.GGUFReader(file).fields["tokenizer.ggml.pre"]
        assert field.contents() == ("llama-bpe" if tokenizer == str(tok) else "qwen2")
        file.unlink()


def test_compared_with_another(capsys, corpus, tmp_path):
    Tokenizer.train_bpe(["the moon"], 260).save(tmp_path / "other")
    options = ["--vocab-size", "300", "--out", str(tmp_path / "tok")]
    assert main([*COMMAND, str(corpus), *options, "--compare", str(tmp_path / "other")]) == 0
    printed = capsys.readouterr().out
    header = next(line for line in printed.splitlines() if line.startswith("bytes per token"))
    assert header.split()[-3:] == ["this", "one", "other"]
    assert "--compare" not in printed


def test_one_document_is_measured_on_what_was_learned_and_says_so(capsys, text_file, tmp_path):
    options = ["--vocab-size", "5000", "--out", str(tmp_path / "tok")]
    assert main([*COMMAND, str(text_file), *options]) == 0
    printed = capsys.readouterr().out
    assert "your text, learned" in printed
    assert "fewer than 5000" in printed


def test_the_samples_are_what_they_say():
    (chinese,), (code,) = samples()
    assert len(chinese) > 50_000
    assert code.isascii() or sum(map(ord, code)) / len(code) < 128
    assert not re.search("[一-鿿]", code)


def test_ten_megabytes_take_seconds(tmp_path, capsys):
    """A megabyte here; time grows more slowly than the text, for words repeat."""
    path = tmp_path / "big.txt"
    words = [
        f"word{i * i % 9973} and {'abcdef'[i % 6]}{i % 700} 月{chr(0x4E00 + i % 3000)}"
        for i in range(40_000)
    ]
    path.write_text("\n".join(words), encoding="utf-8")
    start = time.process_time()
    assert main([*COMMAND, str(path), "--vocab-size", "2000", "--out", str(tmp_path / "t")]) == 0
    assert time.process_time() - start < 10
    capsys.readouterr()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "FILES must be given"),
        (["nothing.txt"], "nothing.txt"),
        (["CORPUS", "--vocab-size", "100"], "vocab_size must be at least 257"),
        (["CORPUS", "--special", "a"], "at least 2 characters"),
        (["CORPUS", "--special", "<|a|>", "<|a|>"], "given 2 times"),
        (["CORPUS", "--compare", "nowhere"], "there is no tokenizer at nowhere"),
        (["CORPUS", "--out", "a.json"], "--out must be a folder"),
        (["CORPUS", "--out", "taken"], "choose another --out, or pass --overwrite"),
        (["CORPUS", "--out", "model"], "belongs to a model"),
        (["CORPUS", "--text-key", "body"], "body"),
        (["CORPUS", "--vocab-sise", "300"], "--vocab-size"),
    ],
)
def test_mistakes_are_one_line(options, words, corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Tokenizer.train_bpe(["x"], 257).save(tmp_path / "taken")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}", encoding="utf-8")
    before = (tmp_path / "taken" / "tokenizer.json").read_bytes()
    assert main([*COMMAND, *(str(corpus) if o == "CORPUS" else o for o in options)]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.strip().splitlines()) == 1
    assert (tmp_path / "taken" / "tokenizer.json").read_bytes() == before
    assert not (tmp_path / "runs").exists()


def test_overwrite_and_a_name_of_its_own(corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = [str(corpus), "--vocab-size", "300"]
    assert main([*COMMAND, *options]) == 0
    assert main([*COMMAND, *options]) == 0
    assert Tokenizer.load(tmp_path / "runs" / "tokenizer-2").vocab_size == 300
    more = [*options[:1], "--vocab-size", "310", "--out", "runs/tokenizer", "--overwrite"]
    assert main([*COMMAND, *more]) == 0
    assert Tokenizer.load(tmp_path / "runs" / "tokenizer").vocab_size == 310
    capsys.readouterr()
