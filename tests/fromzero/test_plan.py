"""`fromzero plan`: its page, its JSON, its advice put back on the command line, its refusals."""

import json
import shlex

import pytest

from fromzero.main import main
from fromzero.option_types import parse_bytes, parse_tokens

N = 124_439_808  # parameters of gpt2


def figures(capsys, *arguments):
    assert main(["plan", *arguments, "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return json.loads(captured.out)


def test_the_page_says_what_matters(capsys):
    arguments = "--model gpt2-xl --gpus 8 --gpu-memory 80GB --tokens 10e9 --price-per-hour 2"
    assert main(["plan", *arguments.split()]) == 0
    out = capsys.readouterr().out
    assert "1,557,611,200 parameters, 10B tokens (6.42 per parameter)" in out
    for word in ("weights", "gradients", "optimizer", "activations", "logits"):
        assert f"\n  {word} " in out
    # 6·(48·12·1600² + 50257·1600) + 12·48·1600·1024 = 1.027e10 operations per token
    assert "28.6 h  1.03e+20 FLOPs at 8 × 312TFLOPS × 40%; MFU 40.0%" in out
    assert "152,588  of 65,536 tokens" in out
    assert "228.7; cost 457.3" in out
    # 1.69 + 406.4/N^0.34 + 410.7/D^0.28
    assert "chinchilla               2.645" in out
    assert "replication              2.582" in out
    for kind in ("none", "selective", "block"):
        for parallel in ("ddp", "fsdp"):
            assert f"\n {parallel:<10} {kind:<13} " in out


def test_json_holds_every_figure(capsys):
    found = figures(capsys, "--model", "gpt2", "--tokens", "1B", "--gpu", "a100")
    assert found["parameters"] == N
    assert found["tokens"] == 10**9
    assert found["flops"] == 854_438_400e9
    assert found["seconds"] == pytest.approx(854_438_400e9 / (312e12 * 0.4))
    assert found["gpu_hours"] == pytest.approx(found["seconds"] / 3600)
    assert found["cost"] is None
    assert found["memory"]["weights"] == 4 * N + 2 * 12 * 12 * 768**2
    parts = {part: size for part, size in found["memory"].items() if part != "total"}
    assert sum(parts.values()) == found["memory"]["total"]
    assert (found["fits"], found["verdict"], found["advice"]) == (True, "fits", [])
    assert found["gpu_memory"] == 80 * 10**9
    assert set(found["expected_loss"]) == {"chinchilla", "replication"}
    assert [row["checkpointing"] for row in found["alternatives"]] == ["none", "selective", "block"]
    assert found["setup"]["seq_len"] == 1024


def test_what_does_not_fit_is_an_answer_and_its_advice_fits(capsys):
    arguments = ["--model", "gpt2-xl", "--gpu-memory", "40GB", "--tokens", "10B"]
    assert main(["plan", *arguments]) == 0
    out = capsys.readouterr().out
    assert "of 40GB: does not fit" in out
    assert "…" not in out
    assert max(map(len, out.splitlines())) <= 100
    assert "what would fit:\n" in out
    found = figures(capsys, *arguments)
    assert not found["fits"]
    assert len(found["advice"]) >= 2
    for advised in found["advice"]:
        assert advised["fits"]
        assert f"  {advised['change']} " in out
        again = figures(capsys, *arguments, *shlex.split(advised["change"]))
        assert again["fits"]
        assert again["memory"]["total"] == advised["memory"]
        assert again["seconds"] == pytest.approx(advised["seconds"])


def test_a_card_too_small_for_anything_is_told_so(capsys):
    assert main(["plan", "--model", "gpt-micro", "--gpu-memory", "1kB"]) == 0
    assert "nothing that is known here; train adapters only (LoRA)" in capsys.readouterr().out
    assert figures(capsys, "--model", "gpt-micro", "--gpu-memory", "1kB")["advice"] == []


def test_a_gpu_brings_its_memory_and_its_peaks(capsys):
    h100 = figures(capsys, "--gpu", "h100")
    assert h100["seconds"] == pytest.approx(figures(capsys)["seconds"] * 312 / 989)
    full = figures(capsys, "--gpu", "h200", "--precision", "fp32")
    assert full["gpu_memory"] == 141 * 10**9
    assert full["seconds"] == pytest.approx(h100["seconds"] * 989 / 67)
    own = figures(capsys, "--tflops", "624", "--efficiency", "0.2")
    assert own["seconds"] == pytest.approx(figures(capsys)["seconds"])


def test_a_directory_and_a_file_are_read(capsys, tiny_model):
    wanted = figures(capsys, "--model", str(tiny_model))
    assert figures(capsys, "--model", str(tiny_model / "config.json")) == wanted
    assert wanted["setup"]["seq_len"] == 64
    assert wanted["parameters"] < 100_000
    assert wanted["tokens"] == 20 * wanted["parameters"]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        *(("80GB", 80e9), ("80 gb", 80e9), ("24GiB", 24 * 2**30), ("16000MB", 16e9)),
        *(("1.5kB", 1500), ("512KiB", 2**19), ("500000", 5e5), ("0.141TB", 141e9), ("9B", 9)),
    ],
)
def test_sizes(text, size):
    assert parse_bytes("gpu_memory", text) == size


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *(("10e9", 1e10), ("10B", 1e10), ("300M", 3e8), ("2.5b", 2.5e9), ("1e3k", 1e6), ("7", 7)),
        *(("20x", 2000), ("0.5x", 50), ("1T", 1e12), (" 3G ", 3e9), ("1E9", 1e9), ("5.", 5)),
    ],
)
def test_numbers_of_tokens(text, number):
    assert parse_tokens("tokens", text, 100) == number


@pytest.mark.parametrize(
    "text",
    ["", "GB", "-1GB", "0GB", "80GX", "8 0GB", "1,5GB", "nan", "inf", "1e999GB", "1.2.3GB", "1e-3"],
)
def test_what_is_no_size_is_refused_with_what_was_given(text):
    with pytest.raises(ValueError, match="gpu_memory must be a positive number such as 80GB"):
        parse_bytes("gpu_memory", text)
    with pytest.raises(ValueError, match=r"tokens must be .*, got ") as caught:
        parse_tokens("tokens", text, 100)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "gpt3"], ["'gpt3'", "gpt2"]),
        (["--gpu", "h10"], ["gpu must be one of", "did you mean 'h100'"]),
        (["--gpu-memory", "80XB"], ["gpu_memory", "80GB", "'80XB'"]),
        (["--tokens", "many"], ["tokens", "'many'"]),
        (["--gpus", "0"], ["gpus must be an integer >= 1, got 0"]),
        (["--gpus", "two"], ["--gpus", "'two'"]),
        (["--grad-accumulation", "0"], ["grad_accumulation must be an integer >= 1, got 0"]),
        (["--gpus", "2", "--grad-accumulation", "3"], ["a multiple of the 2 gpus", "got 3"]),
        (["--gpus", "2", "--parallel", "none"], ["ddp or fsdp with 2 gpus"]),
        (["--gpus", "2", "--parallel", "fsdp", "--optimizer", "muon"], ["whole matrices"]),
        (["--seq-len", "2048"], ["seq_len", "<= 1024", "got 2048"]),
        (["--efficiency", "40"], ["efficiency", "<= 1", "got 40"]),
        (["--tflops", "0"], ["tflops", "got 0"]),
        (["--price-per-hour", "-2"], ["price"]),
        (["--checkpointing", "all"], ["checkpointing must be one of none, selective, block"]),
        (["--model", "no-such.json"], ["no-such.json"]),
    ],
)
def test_refusals_are_one_line(capsys, arguments, words):
    assert main(["plan", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("fromzero: error: ")
    assert captured.err.count("\n") == 1
    for word in words:
        assert word in captured.err


def test_a_config_that_is_no_object_is_refused(capsys, tmp_path):
    path = tmp_path / "config.json"
    path.write_text("[1]", encoding="utf-8")
    assert main(["plan", "--model", str(path)]) == 2
    assert "must hold a JSON object, got list" in capsys.readouterr().err
