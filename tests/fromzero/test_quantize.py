"""`fromzero quantize`: a smaller model directory that every other command reads."""

import json
import re

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM

from foundation.files import verify_manifest
from fromzero.main import main
from fromzero.quantize import read_windows
from gpt_model.model import GPT
from tokenization.tokenizer import Tokenizer
from transformer_basics.quantized_linear import quantized_parts


@pytest.fixture
def quantize(tmp_path, monkeypatch, capsys, tiny_model):
    monkeypatch.chdir(tmp_path)

    def run(*options, expect=0):
        code = main(["quantize", "--model", str(tiny_model), *options])
        captured = capsys.readouterr()
        assert code == expect, captured.err
        return captured.out if expect == 0 else captured.err

    return run


@pytest.fixture
def small(quantize):
    """The tiny model in four bits, tables in eight."""
    quantize("--out", "small")
    return "small"


def facts(output):
    """The report as a dictionary."""
    return dict(re.split(r"  +", line, maxsplit=1) for line in output.splitlines() if "  " in line)


def test_eight_bits_keep_what_the_model_writes(quantize, tiny_model, capsys):
    found = facts(quantize("--bits", "8", "--out", "q8"))
    assert found["layers"] == "6 in 8 bits (rtn, groups of 64); vocabulary in 8 bits"
    assert found["saved"] == "q8"
    plain, small = GPT.load(tiny_model), GPT.load("q8")
    ids = torch.arange(40)[None]
    gap = (plain(ids).logits - small(ids).logits).norm() / plain(ids).logits.norm()
    assert gap < 0.02
    assert sorted(verify_manifest("q8", kind="model")["files"]) == [
        "config.json", "model.safetensors", "tokenizer.json",
    ]  # fmt: skip
    greedy = ["--prompt", "the ", "--temperature", "0", "--max-new-tokens", "5"]
    texts = []
    for model in (str(tiny_model), "q8"):
        assert main(["generate", "--model", model, *greedy]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[1].startswith("the ")


@pytest.mark.parametrize("method", ["rtn", "gptq", "awq"])
def test_methods_that_look_at_text(quantize, text_file, method):
    options = ["--calibration", str(text_file), "--windows", "8", "--length", "32"]
    found = facts(quantize("--method", method, "--out", method, *options, "--group-size", "16"))
    assert found["calibration"] == f"8 windows of 32 tokens of {text_file}"
    assert re.fullmatch(r"mean \d\.\d\d%, worst \d+\.\d\d% \(blocks\.0\..*_proj\)",
                        found["layer error"])  # fmt: skip
    assert re.fullmatch(r"loss [\d.]+ -> [\d.]+ \(\d+ tokens\)", found["held out"])
    assert {part.method for part in quantized_parts(GPT.load(method)).values()} == {"rtn", method}


def test_the_size_is_the_formulas(quantize, tiny_model, tmp_path):
    found = facts(quantize("--out", "s", "--group-size", "32"))
    before, disk, memory, theory = re.findall(r"([\d.]+)kB", found["size"])
    assert float(memory) == float(theory)
    assert float(disk) * 1000 == pytest.approx((tmp_path / "s/model.safetensors").stat().st_size,
                                               rel=0.01)  # fmt: skip
    assert float(disk) < 0.5 * float(before)
    assert re.fullmatch(r"\d+ ms -> \d+ ms, checked and mapped", found["load time"])


def test_groups_that_do_not_fill_the_rows_are_told(tmp_path, monkeypatch, tiny_model, capsys):
    monkeypatch.chdir(tmp_path)
    told = []
    for group in ("32", "0", "64"):  # rows of 32, and of 128 in one layer
        code = main(["quantize", "--model", str(tiny_model), "--group-size", group, "--out", group])
        assert code == 0
        told.append(capsys.readouterr().err)
    assert told[:2] == ["", ""]
    weights = 300 * 32 + 12 * 32 * 32
    assert "--group-size 64 does not fill the rows" in told[2]
    assert f"{2 * weights - 4 * 32 * 32:,} integers are stored for {weights:,} weights" in told[2]


def test_the_picture(quantize, text_file, tmp_path):
    options = ["--calibration", str(text_file), "--windows", "4", "--plot", "e.png"]
    assert "picture      e.png" in quantize("--out", "s", *options)
    assert (tmp_path / "e.png").read_bytes().startswith(b"\x89PNG")


def test_a_new_directory_is_found_and_the_newest_run_is_the_default(quantize, tiny_model, capsys):
    assert "saved        runs/tiny-4bit\n" in quantize()
    assert "saved        runs/tiny-4bit-2\n" in quantize()
    # what is newest now holds integers already
    assert main(["quantize"]) == 2
    assert "quantized already" in capsys.readouterr().err


def test_the_run_says_what_it_was_trained_on(quantize, text_file, tmp_path, capsys):
    words = ["--preset", "gpt-micro", "--dim", "32", "--n-heads", "2", "--n-layers", "1"]
    sizes = ["--steps", "2", "--batch-size", "2", "--block-size", "32", "--vocab-size", "280"]
    assert main(["train", "--data", str(text_file), "--out", "runs/t", *words, *sizes]) == 0
    capsys.readouterr()
    assert main(["quantize", "--model", "runs/t", "--method", "gptq", "--windows", "4"]) == 0
    out = capsys.readouterr().out
    assert f"calibration  4 windows of 256 tokens of {text_file}" in out
    assert "saved        runs/t-4bit" in out


def test_evaluate_compares_it_with_the_original(small, tiny_model, text_file, tmp_path, capsys):
    words = ["--model", str(tiny_model), small, "--data", str(text_file)]
    assert main(["evaluate", *words, "--json", "e.json"]) == 0
    capsys.readouterr()
    models = json.loads((tmp_path / "e.json").read_text(encoding="utf-8"))["models"]
    losses = [model["text"]["loss"] for model in models]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], abs=0.1)
    assert len({model["parameters"] for model in models}) == 1


def test_finetune_beside_it(small, text_file, tmp_path, capsys):
    (tmp_path / "pairs.jsonl").write_text(
        "".join(
            json.dumps({"prompt": f"the {n}?\n", "answer": "the lazy dog"}) + "\n"
            for n in range(30)
        ),
        encoding="utf-8",
    )
    words = ["finetune", "--data", "pairs.jsonl", "--model", small, "--steps", "20"]
    quick = ["--batch-size", "4", "--eval-every", "20", "--learning-rate", "0.02"]
    assert main([*words, *quick, "--method", "qlora", "--out", "runs/q", "--merge", "m"]) == 0
    out = capsys.readouterr().out
    first, last = map(float, re.search(r"loss ([\d.]+) -> ([\d.]+)", out).groups())
    assert last < first - 0.3
    # beside the integers and merged, the same text
    greedy = ["--prompt", "the 7?\n", "--temperature", "0", "--max-new-tokens", "8"]
    texts = []
    for given in (["--model", small, "--adapter", "runs/q"], ["--model", "m"]):
        assert main(["generate", *given, *greedy]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert quantized_parts(GPT.load("m")) == {}
    # the integers are as they were; the whole of them cannot be trained
    assert (
        main(["generate", "--model", small, "--adapter", "runs/q", *greedy, "--dtype", "bf16"]) == 0
    )
    capsys.readouterr()
    assert main([*words, *quick, "--method", "full"]) == 2
    assert (
        "small holds integers, which cannot be trained; --method qlora" in capsys.readouterr().err
    )


def test_export_keeps_the_integers_or_says_that_it_restores_them(small, tmp_path, capsys):
    words = ["export", small, "--without-tokenizer"]
    assert main([*words, "--to", "hf"]) == 0
    assert "note: small holds integers, and this layout has no place" in capsys.readouterr().err
    theirs, ours = AutoModelForCausalLM.from_pretrained("hf").eval(), GPT.load(small)
    ids = torch.arange(20)[None]
    torch.testing.assert_close(theirs(ids).logits, ours(ids).logits, atol=1e-4, rtol=1e-4)
    assert main([*words, "--to", "a.gguf", "--format", "gguf"]) == 0
    assert "kept bit for bit: 4 as q4_0, 1 as q8_0\n" in capsys.readouterr().err
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    assert {t.tensor_type.name for t in reader.tensors} == {"F32", "Q4_0", "Q8_0"}
    del reader
    assert main([*words, "--to", "b.gguf", "--format", "gguf", "--type", "q8_0"]) == 0
    assert "bit for bit" not in capsys.readouterr().err


def test_models_still_shows_the_shape(small, capsys):
    assert main(["models", small]) == 0
    assert "parameters" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--bits", "3"], ["bits must be one of 4, 8", "'3'"]),
        (["--method", "gtpq"], ["method must be one of rtn, gptq, awq", "did you mean 'gptq'"]),
        (["--group-size", "-1"], ["group_size must be an integer >= 0, got -1"]),
        (["--group-size", "7"], ["group_size must be even, got 7"]),
        (["--embeddings", "2"], ["embeddings must be one of 0, 4, 8", "'2'"]),
        (["--skip", "down_prj"], ["skip must be one of", "'down_prj'", "did you mean 'down_proj'"]),
        (["--act-order"], ["--act-order belongs to --method gptq, got --method rtn"]),
        (["--windows", "0"], ["windows must be an integer >= 1, got 0"]),
        (["--length", "65"], ["length must be an integer >= 1 and <= 64, got 65"]),
        (["--calibration", "nowhere.txt"], ["nowhere.txt", "--calibration names the text"]),
        (["--plot", "e.xyz"], ["cannot draw to e.xyz: the ending must be one of", "png"]),
        (["--plot", "nowhere/e.png"], ["cannot write nowhere/e.png: its folder"]),
        (["--method", "gptq", "--calibration", "short.txt"],
         ["short.txt has", "one window of 64", "(--length)"]),
        (["--skip", "q_proj", "k_proj", "v_proj", "out_proj", "up_proj", "down_proj"],
         ["no Linear layer to quantize"]),
        (["--out", "taken"], ["taken already exists"]),
    ],
)  # fmt: skip
def test_mistakes_name_value_and_limit_and_write_nothing(quantize, tmp_path, options, words):
    (tmp_path / "short.txt").write_text("the lazy dog", encoding="utf-8")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "a.txt").write_text("mine", encoding="utf-8")
    before = sorted(tmp_path.rglob("*"))
    error = quantize(*options, expect=2)
    assert len(error.strip().splitlines()) == 1
    for word in words:
        assert word in error
    assert sorted(tmp_path.rglob("*")) == before


def test_calibration_and_exam_do_not_overlap(text_file):
    tokenizer = Tokenizer.train_bpe([text_file.read_text(encoding="utf-8")], 300)
    seen, exam = read_windows(str(text_file), tokenizer, 6, 20)
    assert seen.shape == (6, 20)
    assert exam is not None
    ids = [tokenizer.end_id, *tokenizer.encode(text_file.read_text(encoding="utf-8"))]
    wanted = ids[: 8 * 6 * 20]
    assert exam.tolist() == wanted[len(wanted) - len(wanted) // 10 :]
    assert seen[0].tolist() == wanted[:20]
    assert seen[-1].tolist() == wanted[: -len(exam)][-20:]
