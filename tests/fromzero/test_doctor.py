"""`fromzero doctor`: what it shows, and what turns it red."""

import io
import sys

import pytest
import torch

from foundation import environment
from fromzero import doctor
from fromzero.main import main

QUICK = ["doctor", "--no-compile", "--no-speed"]


def test_this_machine_is_green(capsys):
    assert main(QUICK) == 0
    out = capsys.readouterr().out
    for word in ("Python", "packages", "disk", "memory", "threads", "device cpu", "gradients"):
        assert word in out
    assert "✗" not in out
    assert out.rstrip().endswith("0 wrong: ready")


def test_a_device_that_computes_wrongly_is_named_and_red(capsys, monkeypatch):
    right = torch.matmul
    monkeypatch.setattr(torch, "matmul", lambda a, b: right(a, b) * 1.0001)
    assert main(QUICK) == 1
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if "matmul fp32" in line)
    assert line.startswith("✗")
    assert "cpu COMPUTES WRONGLY" in line
    assert "bound" in line
    assert out.rstrip().endswith("NOT ready")


def test_a_missing_package_is_red_and_stops_before_torch(capsys, monkeypatch):
    monkeypatch.setattr(environment, "REQUIRED_PACKAGES", ("absent_package_of_test",))
    assert main(QUICK) == 1
    out = capsys.readouterr().out
    assert "✗ absent_package_of_test" in out
    assert "pip install -r requirements.txt" in out
    assert "matmul" not in out


def test_an_absent_compiler_is_yellow(capsys, monkeypatch):
    monkeypatch.setattr(environment, "_PROBE", "raise RuntimeError('InvalidCxxCompiler')")
    assert main(["doctor", "--no-speed"]) == 0
    line = next(x for x in capsys.readouterr().out.splitlines() if "torch.compile" in x)
    assert line.startswith("! torch.compile")


def test_speed_is_told_in_minutes(capsys, monkeypatch):
    from evaluation.throughput import Workload
    from gpt_model.config import preset

    tiny = preset("gpt-micro", n_layers=1, dim=16, n_heads=2, vocab_size=64, max_seq_len=8)
    monkeypatch.setattr(doctor, "workloads", lambda: [Workload("a tiny run", tiny, 10**6, 4, 8)])
    from evaluation import checkup, throughput

    right = throughput.measure_training_speed
    monkeypatch.setattr(
        throughput, "measure_training_speed", lambda *a, **k: right(*a, **{**k, "seconds": 0.05})
    )
    assert main(["doctor", "--no-compile"]) == 0
    line = next(x for x in capsys.readouterr().out.splitlines() if "a tiny run" in x)
    assert "1.0 M tokens at" in line
    assert "about" in line
    assert checkup.minutes_text(312) == "5.2 min"


def test_a_console_that_cannot_print_marks_gets_words(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="replace")
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert main(QUICK) == 0
    stream.flush()
    out = stream.buffer.getvalue().decode("ascii")
    assert out.startswith("ok ")
    assert "?" not in out


def test_real_workloads_fit_their_models():
    for workload in doctor.workloads():
        assert workload.block_size <= workload.config.max_seq_len
        assert workload.n_tokens > 10_000


@pytest.mark.parametrize("limit", ["nan", "-1", "0", "1e999"])
def test_a_senseless_limit_is_refused(capsys, limit):
    assert main(["doctor", "--compile-limit", limit]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "compile_limit must be a finite number > 0.0" in error
