"""这台机器一秒能训练多少词元？真的训练几步，量出来。"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from foundation.checks import check_float, check_int
from foundation.devices import autocast_context, resolve_precision
from foundation.numerics import synchronize
from gpt_model.config import GPTConfig
from gpt_model.model import GPT

__all__ = ["Workload", "measure_training_speed", "steps_in"]


@dataclass(frozen=True)
class Workload:
    """A training run in one line: what is trained, on how many tokens, in which batches."""

    name: str
    config: GPTConfig
    n_tokens: int
    batch_size: int
    block_size: int


def measure_training_speed(
    workload: Workload, device: torch.device, precision: str = "auto", *, seconds: float = 2.0
) -> float:
    """Train on random tokens for about `seconds` and return the median speed in tokens/s.

    The first step is not counted: it allocates memory and starts threads.
    """
    check_int("batch_size", workload.batch_size, 1)
    check_int("block_size", workload.block_size, 1, workload.config.max_seq_len)
    check_float("seconds", seconds, 0.0)
    precision = resolve_precision(precision, device)
    model = GPT(workload.config).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=device.type != "mps")
    shape = (workload.batch_size, workload.block_size + 1)
    ids = torch.randint(workload.config.vocab_size, shape).to(device)

    durations: list[float] = []
    deadline = time.perf_counter() + seconds
    while len(durations) < 2 or time.perf_counter() < deadline:
        start = time.perf_counter()
        with autocast_context(precision, device):
            loss = model(ids[:, :-1], ids[:, 1:]).loss
        assert loss is not None
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        synchronize(device)
        durations.append(time.perf_counter() - start)
    counted = sorted(durations[1:])
    return workload.batch_size * workload.block_size / counted[len(counted) // 2]


def steps_in(
    minutes: float, workload: Workload, device: torch.device, precision: str = "auto"
) -> tuple[int, float]:
    """Return how many batches of `workload` fit into `minutes` here, and the speed in tokens/s.

    Never more than the workload's own number of tokens; at least one.
    """
    check_float("minutes", minutes, exclusive_minimum=0.0)
    speed = measure_training_speed(workload, device, precision, seconds=3.0)
    n_tokens = min(minutes * 60 * speed, workload.n_tokens)
    return max(1, int(n_tokens / (workload.batch_size * workload.block_size))), speed
