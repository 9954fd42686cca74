"""`fromzero evaluate`: figures that can be checked by hand."""

import json
import math
import re

import pytest
import torch

from evaluation.small_suite import SUITE
from fromzero.main import main
from gpt_model.config import preset
from gpt_model.model import GPT
from tokenization.tokenizer import Tokenizer
from training.prepare import prepare_data


@pytest.fixture
def guessing_model(tiny_model, tmp_path):
    """A model that finds all 300 tokens equally likely."""
    model = GPT.load(tiny_model)
    torch.nn.init.zeros_(model.lm_head.weight)
    model.save(tmp_path / "guessing", Tokenizer.load(tiny_model))
    return tmp_path / "guessing"


def figures(out):
    return {
        name: float(value.replace(",", ""))
        for name, value in re.findall(r"^([a-z ]+?) +([\d.,]+)", out, flags=re.MULTILINE)
    }


def test_guessing_costs_what_it_must(capsys, guessing_model, text_file):
    assert main(["evaluate", "--data", str(text_file), "--model", str(guessing_model)]) == 0
    captured = capsys.readouterr()
    found = figures(captured.out)
    text = text_file.read_text(encoding="utf-8")
    n_tokens = len(Tokenizer.load(guessing_model).encode(text))
    size = len(text.encode())
    assert found["tokens"] == n_tokens
    assert found["perplexity"] == pytest.approx(300, abs=0.01)
    assert found["loss"] == pytest.approx(math.log(300), abs=1e-3)
    assert found["bits per byte"] == pytest.approx(n_tokens * math.log2(300) / size, abs=1e-3)
    assert str(guessing_model) in captured.err


def test_a_longer_context_is_measured_with_stretched_positions(capsys, tiny_model, tmp_path):
    torch.manual_seed(0)
    tokenizer = Tokenizer.load(tiny_model)
    config = preset("modern-micro", vocab_size=tokenizer.vocab_size, max_seq_len=32, n_layers=1)
    GPT(config.replace(dim=32, n_heads=2, init_std=0.2)).save(tmp_path / "rope", tokenizer)
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps. " * 30, encoding="utf-8", newline="\n")
    run = ["evaluate", "--data", str(text), "--model", str(tmp_path / "rope")]
    found = {}
    for kind in (None, "none", "linear", "yarn"):
        options = [] if kind is None else ["--context", "128", "--rope-scaling", kind]
        assert main([*run, *options]) == 0
        found[kind] = figures(capsys.readouterr().out)["loss"]
    assert len(set(found.values())) == 4
    assert main([*run, "--context", "128"]) == 2  # longer than 32, and no word of how
    assert "context must be an integer >= 1 and <= 32, got 128" in capsys.readouterr().err


def test_a_prepared_directory_is_measured_on_its_validation_split(
    capsys, guessing_model, tiny_model, text_file, tmp_path
):
    tokenizer = Tokenizer.load(tiny_model)
    train, val = prepare_data(text_file, tokenizer, tmp_path / "data", val_fraction=0.3)
    arguments = ["evaluate", "--data", str(tmp_path / "data"), "--model", str(guessing_model)]
    assert main(arguments) == 0
    found = figures(capsys.readouterr().out)
    assert found["tokens"] == val.n_tokens - 1 != train.n_tokens - 1
    assert found["perplexity"] == pytest.approx(300, abs=0.01)
    per_byte = math.log2(300) / val.bytes_per_token
    assert found["bits per byte"] == pytest.approx(per_byte, abs=1e-3)
    # ids of another tokenizer mean something else, and would still give a figure
    other = Tokenizer.train_bpe(["another text"], 260)
    prepare_data(text_file, other, tmp_path / "other", val_fraction=0.3)
    arguments[2] = str(tmp_path / "other")
    assert main(arguments) == 2
    assert "was prepared with another tokenizer than that of" in capsys.readouterr().err


def test_a_folder_counts_every_document(capsys, guessing_model, tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.txt").write_text("the fox " * 9, encoding="utf-8", newline="\n")
    assert main(["evaluate", "--data", str(folder), "--model", str(guessing_model)]) == 0
    both = figures(capsys.readouterr().out)["tokens"]
    one = len(Tokenizer.load(guessing_model).encode("the fox " * 9))
    assert both == 2 * one + 1  # and the separator between them


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--stride", "0"], ["stride", ">= 1", "got 0"]),
        (["--stride", "65"], ["stride", "<= 64", "got 65"]),
        (["--context", "65"], ["context", "<= 64", "got 65"]),
        (["--batch-size", "0"], ["batch_size", ">= 1"]),
        (["--errors", "ignore"], ["errors", "strict, replace", "'ignore'"]),
        (["--device", "gpu7"], ["device", "'gpu7'"]),
        (["--dtype", "int8"], ["dtype", "auto, fp32, bf16", "'int8'"]),
    ],
)
def test_bad_options_name_value_and_limit(capsys, tiny_model, text_file, options, words):
    arguments = ["evaluate", "--data", str(text_file), "--model", str(tiny_model), *options]
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1].startswith("fromzero: error: ")
    for word in words:
        assert word in captured.err.splitlines()[-1]


def test_without_data_or_task_the_small_suite_is_asked(capsys, guessing_model, tmp_path):
    file = tmp_path / "scores.json"
    arguments = ["evaluate", "--model", str(guessing_model), "--limit", "8", "--json", str(file)]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    for name in ("cloze", "brackets", "copying", "arithmetic"):
        assert re.search(rf"(?m)^{name} accuracy +[\d.]+ ± [\d.]+ % +25\.0 %$", out), name
    values = json.loads(file.read_text(encoding="utf-8"))
    (report,) = values["models"]
    assert [task["task"] for task in report["tasks"]] == list(SUITE)
    assert report["model"] == str(guessing_model)
    assert report["text"] is None
    assert values["settings"]["limit"] == 8
    brackets = report["tasks"][1]
    # to this model all four choices are one and the same
    assert brackets["measures"]["accuracy"]["value"] == 0.25 == brackets["chance"]


def test_own_questions_text_and_two_models_side_by_side(
    capsys, guessing_model, tiny_model, text_file, tmp_path
):
    file = tmp_path / "mine.jsonl"
    file.write_text(
        '{"prompt": "the quick", "choices": [" brown", " dog"], "answer": " brown"}\n',
        encoding="utf-8",
    )
    models = [str(guessing_model), str(tiny_model)]
    arguments = ["evaluate", "--model", *models, "--data", str(text_file), "--task", str(file)]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == [*models, "chance"]
    perplexities = next(line for line in lines if line.startswith("perplexity")).split()[1:]
    assert perplexities[0] == "300.00"
    assert perplexities[1] != "300.00"
    assert any(line.startswith("mine accuracy per byte") for line in lines)


def test_programs_run_only_when_asked_to(capsys, guessing_model, tmp_path):
    file = tmp_path / "code.jsonl"
    file.write_text('{"prompt": "x = 1\\n", "tests": "pass", "stop": []}\n', encoding="utf-8")
    arguments = ["evaluate", "--model", str(guessing_model), "--task", str(file)]
    assert main(arguments) == 2
    assert "--run-code" in capsys.readouterr().err
    more = ["--run-code", "--samples", "2", "--k", "1", "2", "--max-new-tokens", "3"]
    assert main([*arguments, *more]) == 0
    assert re.search(r"(?m)^code pass@1 ", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--task", "clozze"], ["'clozze'", "did you mean 'cloze'"]),
        (["--task", "brackets", "--limit", "0"], ["limit", ">= 1", "got 0"]),
        (["--task", "programs", "--run-code", "--k", "2"], ["k 2", "1 samples"]),
        (["--task", "brackets", "--json", "no/such/folder/s.json"], ["folder does not exist"]),
        (["--task", "brackets", "--json", "."], ["it is a folder"]),
        (["--data", "no/such.txt"], ["no/such.txt"]),
    ],
)
def test_mistakes_are_found_before_a_model_is_loaded(capsys, monkeypatch, options, words):
    def loaded(*_):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("fromzero.evaluate.open_model", loaded)
    assert main(["evaluate", *options]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("fromzero: error: ")
    for word in words:
        assert word in error


def test_an_adapter_belongs_to_one_model(capsys, tiny_model):
    models = [str(tiny_model), str(tiny_model)]
    assert main(["evaluate", "--model", *models, "--adapter", "a", "--task", "brackets"]) == 2
    assert "an adapter belongs to one model, got 2" in capsys.readouterr().err
