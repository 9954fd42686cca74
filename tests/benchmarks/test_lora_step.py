"""The LoRA benchmark's contenders train the same thing; its limit is the arithmetic."""

import importlib
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def worker(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("step_worker", "train_throughput", "lora_step"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module("step_worker")


@pytest.mark.parametrize("kind", ["ours-bf16", "ours-fp32", "ours-qlora-bf16", "peft-bf16"])
def test_each_contender_learns_its_batch(worker, kind):
    if "peft" in kind:
        pytest.importorskip("peft")
    shape = worker.Shape(1, 2, 32, 16, 61, 2)
    step = worker.make_step(f"lora-{kind}", shape, None, "cpu")
    losses = [step() for _ in range(100)]
    assert abs(losses[0] - 4.11) < 0.2  # ln 61
    assert losses[-1] < losses[0]


def test_the_limit_counts_two_products_for_each_weight(worker):
    lora_step = importlib.import_module("lora_step")
    shape = worker.SHAPES["lora"]
    assert shape.tokens == 1024
    weights = 12 * 12 * 768**2 + 50257 * 768
    assert lora_step.flops(shape) == 1024 * (4 * weights + 6 * 12 * 256 * 768)


def test_the_ratios_are_of_the_same_precision(worker, capsys):
    lora_step = importlib.import_module("lora_step")
    rows = {
        name: {"seconds": s, "min": m, "bytes": b}
        for name, s, m, b in (
            ("lora-ours-bf16", 2.0, 1.0, 10),
            ("lora-peft-bf16", 3.0, 2.0, 40),
            ("lora-ours-qlora-bf16", 9.0, 9.0, 5),
        )
    }
    lora_step.compare(rows)
    assert capsys.readouterr().out == (
        "bf16: 1.50 x PEFT's speed (2.00 by the fastest step), 25% of its memory\n"
    )
