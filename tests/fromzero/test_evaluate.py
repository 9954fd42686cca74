"""`fromzero evaluate`: figures that can be checked by hand."""

import math
import re

import pytest
import torch

from fromzero.main import main
from gpt_model.model import GPT
from tokenization.tokenizer import Tokenizer


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


def test_data_must_be_given(capsys):
    assert main(["evaluate"]) == 2
    assert "--data" in capsys.readouterr().err
