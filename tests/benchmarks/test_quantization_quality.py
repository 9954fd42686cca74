"""The quantization benchmark scores, counts and compares what its tables say."""

import copy
import importlib
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from evaluation.perplexity import evaluate_tokens
from gpt_model.config import preset
from gpt_model.model import GPT
from inference.block_by_block import METHODS
from inference.quantization import quantize
from transformer_basics.integer_weights import WeightFormat

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.delitem(sys.modules, "quantization_quality", raising=False)
    return importlib.import_module("quantization_quality")


@pytest.fixture
def model():
    torch.manual_seed(0)
    sizes = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 48}
    return GPT(preset("modern-micro", vocab_size=60, max_seq_len=16, **sizes)).eval()


def rows(output):
    """Table rows as lists of cells."""
    lines = [line for line in output.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_score_is_the_loss_and_the_divergence(benchmark, model):
    windows = torch.randint(60, (20, 17))
    exam = benchmark.Exam(model, windows)
    whole = exam.score(model)
    alone = [evaluate_tokens(model, row, context=16).loss for row in windows]
    assert whole.loss == pytest.approx(sum(alone) / 20, rel=1e-5)
    assert whole.kl == 0
    # a model that says everything is equally likely: both are known
    flat = copy.deepcopy(model)
    torch.nn.init.zeros_(flat.lm_head.weight)
    found = exam.score(flat)
    assert found.loss == pytest.approx(math.log(60), rel=1e-5)
    with torch.no_grad():
        own = torch.cat([model(row[None, :-1]).logits[0] for row in windows]).softmax(-1)
    entropy = float(-(own * own.log()).sum(-1).mean())
    assert found.kl == pytest.approx(math.log(60) - entropy, rel=1e-3)


def test_one_scale_for_a_matrix(benchmark, model):
    made = benchmark.one_scale_each(copy.deepcopy(model), 4)
    for old, new in zip(model.parameters(), made.parameters(), strict=True):
        kinds = len(new.unique())
        assert kinds <= 16 if old.dim() == 2 and old is not model.lm_head.weight else True
    linear = made.blocks[1].feed_forward.up_proj.weight
    assert len(linear.unique()) > 8
    assert torch.equal(made.lm_head.weight, model.lm_head.weight)


def test_windows_do_not_overlap_and_draws_differ(benchmark):
    ids = torch.arange(1000)
    spaced = benchmark.windows_of(ids, 30, 8)
    assert spaced[0, 0] == 0
    assert len(spaced.unique()) == 240
    first, again, other = (benchmark.windows_of(ids, 30, 8, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len(first.unique()) == 240
    assert len(benchmark.windows_of(ids, 30, 99)) == 33


def test_bits_of_storage(benchmark):
    assert benchmark.bits_each(WeightFormat(4, 64), 256) == 4.25
    assert benchmark.bits_each(WeightFormat(8, None), 256) == 8 + 16 / 256
    assert benchmark.bits_each(WeightFormat(4, 64, True), 256) == 4 + 24 / 64


def test_scales_and_compensation_go_together(benchmark, model, monkeypatch):
    """Both were done: the norms were divided, and the integers are gptq's on the folded weights."""
    monkeypatch.setitem(METHODS, "awq+gptq", benchmark.fold_then_compensate)
    ids = torch.randint(60, (16, 16))
    made = {}
    for method in ("awq", "gptq", "awq+gptq"):
        other = quantize(copy.deepcopy(model), 4, 16, method=method, calibration=ids)
        made[method] = other.blocks[0]
    assert torch.equal(made["awq+gptq"].ffn_norm.weight, made["awq"].ffn_norm.weight)
    assert not torch.equal(made["awq+gptq"].ffn_norm.weight, made["gptq"].ffn_norm.weight)
    assert made["awq+gptq"].feed_forward.up_proj.method == "gptq"


def test_a_quick_run(benchmark, monkeypatch, tmp_path, capsys):
    data = tmp_path / "text.txt"
    text = "".join(f"the quick fox {n} jumps over dog {n * n}.\n" for n in range(400))
    data.write_text(text, encoding="utf-8", newline="\n")
    words = ["--quick", "--data", str(data), "--folder", str(tmp_path / "work")]
    monkeypatch.setattr(sys, "argv", ["quantization_quality.py", *words])
    monkeypatch.setenv("DECODE_PEERS", "/nowhere/python")
    asked = {}

    def run(command, stdout, stderr, encoding):
        asked["command"] = command
        folder = Path(command[2])
        windows = json.loads((folder / "windows.json").read_text(encoding="utf-8"))
        assert (folder / "hf" / "model.safetensors").is_file()
        assert (len(windows), len(windows[0])) == (4, 33)
        answers = [{"peer": "a", "loss": 2.0}, {"peer": "b", "missing": "ImportError: no b"}]
        return subprocess.CompletedProcess(command, 0, "\n".join(map(json.dumps, answers)))

    monkeypatch.setattr(benchmark.subprocess, "run", run)
    benchmark.main()
    found = rows(capsys.readouterr().out)
    assert asked["command"][0] == "/nowhere/python"
    names = [(row[0], row[1], row[2]) for row in found if len(row) == 8]
    wanted = {("8", "a matrix", "rtn"), ("8", "a row", "rtn"), ("4", "a matrix", "rtn")}
    wanted |= {("4", size, m) for size in ("a row", "128", "64", "32") for m in benchmark.METHODS}
    wanted |= {("4", size, "awq+gptq") for size in ("a row", "128", "64", "32")}
    assert wanted <= set(names)
    assert "awq+gptq" not in METHODS
    assert [row[1] for row in found if row[0] == "this"][0] == "fp32"
    assert ["a", "7.389"] == [row[:2] for row in found if row[0] == "a"][0]
    assert ["b", "ImportError: no b", ""] in found
    # the run is kept: nothing is trained again
    benchmark.main()
    assert "step 1/3" not in capsys.readouterr().out


def test_peers_that_are_missing_are_named(tmp_path):
    """An interpreter without torchao and llama.cpp, or with: every kind answers."""
    (tmp_path / "windows.json").write_text("[[1, 2, 3]]", encoding="utf-8")
    command = [sys.executable, str(ROOT / "benchmarks" / "quantization_peers.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [a["peer"] for a in answers][-3:] == [
        "llama.cpp f32",
        "llama.cpp q8_0",
        "llama.cpp q4_0",
    ]
    assert all(a["missing"].split(":")[0].endswith("Error") for a in answers)
