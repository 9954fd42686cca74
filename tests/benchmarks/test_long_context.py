"""The long-context benchmark measures what its tables say."""

import importlib
import sys
import time
from pathlib import Path

import pytest
import torch

from gpt_model.sizes import flops_per_token

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, "long_context", raising=False)
    return importlib.import_module("long_context")


def test_theory_counts_the_keys_that_each_token_sees(benchmark):
    config, rates = benchmark.growth_config(4096), (1.0, 1.0)
    for kind, reach in (("static", 10**9), ("sliding", benchmark.WINDOW)):
        seconds, _ = benchmark.theory(config, kind, 3000, rates)
        counted = sum(
            flops_per_token(config, min(t + 1, reach), training=False) for t in range(3000)
        )
        assert seconds == pytest.approx(counted, rel=1e-3)
    weights = benchmark.theory(config, "static", 1, rates)[1]
    bytes_each = {
        kind: benchmark.theory(config, kind, 2001, rates)[1] - weights
        for kind in ("static", "int8", "sliding")
    }
    assert bytes_each["static"] == 2000 * 4 * 2 * 2 * 64 * 4
    assert bytes_each["sliding"] == (benchmark.WINDOW - 1) * 4 * 2 * 2 * 64 * 4
    assert bytes_each["int8"] == pytest.approx(2000 * 4 * 2 * 2 * 68, rel=1e-2)


@pytest.mark.parametrize("kind", ["none", "static", "int8", "sliding", "kernels", "transformers"])
def test_growth_measures_a_run(benchmark, kind):
    found = benchmark.grow(kind, 1100)
    assert found["prefill"] > 0
    assert found["peak"] >= 0
    assert (kind == "none") == ("decode" not in found)


@pytest.mark.parametrize("kind", ["static", "growing", "kernels", "transformers"])
def test_whoever_keeps_all_of_it_scores_as_the_model_does(benchmark, kind):
    model = benchmark.GPT(benchmark.growth_config(64)).eval()
    for weight in model.parameters():  # the peer must take every one of them
        torch.nn.init.normal_(weight, 0.5, 0.2)
    ids = torch.randint(1024, (1, 40))
    with torch.inference_mode():
        expected = model(ids, last_only=True).logits
        read = benchmark.opener(kind, model)(64)
        for piece in ids.split([30, 9, 1], dim=1):
            found = read(piece)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_the_processors_clock_does_not_count_waiting(benchmark, monkeypatch):
    for name, waited in (("wall", True), ("cpu", False)):
        monkeypatch.setenv("LONG_CLOCK", name)
        began = benchmark.clock()
        time.sleep(0.2)
        assert (benchmark.clock() - began > 0.15) == waited


def test_streams_are_scored_token_by_token(benchmark, monkeypatch):
    monkeypatch.setattr(benchmark, "PIECE", 7)
    model = benchmark.GPT(benchmark.preset("modern-micro", vocab_size=9, max_seq_len=32)).eval()
    ids = torch.randint(9, (3, 31))
    settings = benchmark.CacheSettings("sliding", 2, 30)  # nothing is forgotten
    pieces = [piece.view(3, -1) for piece in benchmark.streamed(model, ids, settings)]
    with torch.no_grad():
        expected = model(ids[:, :-1], ids[:, 1:].contiguous(), reduction="none").loss
    torch.testing.assert_close(torch.cat(pieces, dim=1), expected.view(3, -1))


def test_the_tables_and_pictures_of_a_quick_run(benchmark, monkeypatch, tmp_path, capsys):
    data = tmp_path / "text.txt"
    data.write_text("the quick brown fox. " * 900, encoding="utf-8", newline="\n")
    for part in ("caches", "endless", "perplexity", "needle"):
        words = ["--quick", "--part", part, "--data", str(data), "--out", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", ["long_context.py", *words])
        benchmark.main()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    names = [line.split("|")[1].strip() for line in lines]
    contenders = ["static", "growing", "int8", "sliding", "kernels", "transformers"]
    assert names[:7] == ["cache", *contenders]
    assert {"none", "yarn", "sliding, 4 sinks"} <= set(names)
    assert all(len(line.split("|")) > 3 for line in lines)
    for name in ("needle.png", "needle_over_length.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_perplexity_needs_a_text(benchmark, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["long_context.py", "--part", "perplexity"])
    with pytest.raises(SystemExit):
        benchmark.main()
    assert "needs --data" in capsys.readouterr().err
