"""Durations as people say them, and a speed that is really measured."""

import pytest
import torch

from evaluation import throughput
from evaluation.checkup import minutes_text
from evaluation.throughput import Workload, measure_training_speed, steps_in
from gpt_model.config import preset

TINY = preset("gpt-micro", n_layers=1, dim=16, n_heads=2, vocab_size=64, max_seq_len=8)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (89, "89 s"), (312, "5.2 min"), (7200, "2.0 h"), (259_200, "3.0 days")],
)
def test_minutes_text(seconds, text):
    assert minutes_text(seconds) == text


def test_a_larger_model_trains_slower():
    large = TINY.replace(dim=128, n_layers=4)
    cpu = torch.device("cpu")
    small_speed, large_speed = (
        measure_training_speed(Workload("w", config, 1, 4, 8), cpu, seconds=0.2)
        for config in (TINY, large)
    )
    assert small_speed > large_speed > 0


def test_a_block_longer_than_the_context_is_refused():
    with pytest.raises(ValueError, match=r"block_size must be .* <= 8, got 9"):
        measure_training_speed(Workload("w", TINY, 1, 4, 9), torch.device("cpu"))


def test_steps_fit_the_time_and_the_data(monkeypatch):
    monkeypatch.setattr(throughput, "measure_training_speed", lambda *_, **__: 320.0)
    cpu = torch.device("cpu")
    # 32 tokens a batch at 320 tokens/s: ten batches a second
    assert steps_in(0.5, Workload("w", TINY, 10**9, 4, 8), cpu) == (300, 320.0)
    assert steps_in(0.5, Workload("w", TINY, 640, 4, 8), cpu)[0] == 20
    assert steps_in(1e-6, Workload("w", TINY, 10**9, 4, 8), cpu)[0] == 1
    for minutes in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="minutes must be a finite number > 0"):
            steps_in(minutes, Workload("w", TINY, 640, 4, 8), cpu)
