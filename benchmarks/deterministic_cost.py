"""What does deterministic mode cost? The same training steps with and without it, in turns.

    python benchmarks/deterministic_cost.py [--preset gpt-micro] [--batch 12] [--rounds 15]

Both runs take their steps in turns (A B A B ...), so that a slow minute of the machine slows both;
the medians are compared. The result depends on the device: on a CPU nearly every operation is
deterministic anyway; on a GPU the backward passes of embeddings and attention change.
"""

from __future__ import annotations

import argparse
import time
from contextlib import ExitStack
from statistics import median

import torch

from foundation.demonstration import use_utf8
from foundation.devices import pick_device, resolve_precision
from gpt_model.config import preset
from gpt_model.model import GPT
from training.accumulation import language_model_loss
from training.batch import Batch
from training.determinism import deterministic_mode
from training.train_config import TrainConfig
from training.train_step import TrainStep


def make_step(arguments: argparse.Namespace, device: torch.device) -> TrainStep:
    """One training on a batch of random tokens that stays the same."""
    config = preset(arguments.preset)
    torch.manual_seed(0)
    ids = torch.randint(config.vocab_size, (arguments.batch, arguments.block + 1), device=device)
    batch = Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())
    model = GPT(config).to(device).train()
    settings = TrainConfig(steps=10_000, schedule="constant", warmup_steps=0)
    precision = resolve_precision(arguments.precision, device)
    return TrainStep(
        model, lambda _: batch, language_model_loss, settings, device=device, precision=precision
    )


def seconds_of(step: TrainStep, number: int, enabled: bool, device: torch.device) -> float:
    """How long one step takes; the report's numbers were fetched, so the device is done."""
    with deterministic_mode(enabled):
        began = time.perf_counter()
        step(number)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began


def main() -> None:
    use_utf8()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="gpt-micro")
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--block", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    device = pick_device(arguments.device)
    with ExitStack() as stack:
        # the workspace has to be named before the first product on a GPU, for both runs
        stack.enter_context(deterministic_mode(True))
        steps = {enabled: make_step(arguments, device) for enabled in (False, True)}
        for enabled, step in steps.items():
            seconds_of(step, 0, enabled, device)
    times: dict[bool, list[float]] = {False: [], True: []}
    for number in range(1, arguments.rounds + 1):
        for enabled, step in steps.items():
            times[enabled].append(seconds_of(step, number, enabled, device))
    usual, fixed = (median(times[enabled]) for enabled in (False, True))
    weights = zip(steps[False].parameters, steps[True].parameters, strict=True)
    same = all(torch.equal(one, other) for one, other in weights)
    tokens = arguments.batch * arguments.block
    print(f"{arguments.preset}, {arguments.batch} x {arguments.block} tokens, {device}, ", end="")
    print(f"{steps[False].precision}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"usual          {1e3 * usual:8.2f} ms/step {tokens / usual:10,.0f} tokens/s")
    print(f"deterministic  {1e3 * fixed:8.2f} ms/step {tokens / fixed:10,.0f} tokens/s")
    print(f"cost           {fixed / usual:8.3f} x; weights of both equal to the bit: {same}")


if __name__ == "__main__":
    main()
