"""Tokens a second beside the speed of the memory and beside other engines.

    python benchmarks/decode_speed.py                            what is installed, batch 1
    python benchmarks/decode_speed.py --rows 16 --new 64         a batch
    python benchmarks/decode_speed.py --model gpt-micro --only ours
    DECODE_PEERS=/path/to/venv/bin/python python benchmarks/decode_speed.py

Random weights (the time does not depend on them), one prompt, greedy. Every engine lives in a
process of its own and loads before the clock starts; then they take turns, round after round, and
the medians are shown. Peers are imported by the interpreter that DECODE_PEERS names, or by this
one; what cannot be imported is named, not guessed.

The limit is measured in the same rounds: as many bytes as the weights have, touched, in large
pages, read once from the first to the last by all threads. A token reads every weight once, so
tokens a second x bytes / limit is the share of the limit.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from statistics import median
from typing import Any

import torch

from foundation.compiled_code import CodeUnavailable
from foundation.demonstration import use_utf8
from foundation.large_pages import WeightBlock
from inference.kernel_interface import load_kernels

ENGINES = [
    *("ours:plain-fp32", "ours:plain-bf16", "ours:fp32", "ours:bf16", "ours:int8", "ours:int4"),
    *("hf:fp32", "hf:bf16", "ct2:fp32", "ct2:bf16", "ct2:int8"),
    *("llama:f32", "llama:f16", "llama:q8_0", "llama:q4_0"),
]
# only when named in --only: what there is without a compiler; and what compiles for minutes
ONLY_WHEN_NAMED = ["ours:flat-fp32", "torchao:int8"]
ROOT = Path(__file__).resolve().parents[1]


class Engine:
    """A process that loads once and is asked again and again."""

    def __init__(self, name: str, folder: Path, threads: int, model: str) -> None:
        self.name = name
        python = sys.executable
        if not name.startswith("ours"):
            python = os.environ.get("DECODE_PEERS", python)
        command = [python, str(ROOT / "benchmarks" / "decode_engines.py"), name, str(folder)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(
            [*command, str(threads), model],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(folder / f"{name.replace(':', '-')}.log").open("w", encoding="utf-8"),
            encoding="utf-8",
            env=environment,
        )
        self.missing = ""
        loaded = self.listen()
        self.n_bytes = int(loaded.get("bytes", 0))
        self.rounds: list[dict[str, float]] = []

    def listen(self) -> dict[str, Any]:
        """Its next answer; what is missing is remembered."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"missing": "it ended"}
        self.missing = str(answer.get("missing", self.missing))
        return answer

    def ask(self, rows: int, prompt: int, new: int) -> None:
        """One round: a prompt and its continuation."""
        assert self.process.stdin is not None
        if self.process.poll() is not None:
            self.missing = f"it ended with code {self.process.returncode}; see its log in --folder"
            return
        self.process.stdin.write(json.dumps({"rows": rows, "prompt": prompt, "new": new}) + "\n")
        self.process.stdin.flush()
        answer = self.listen()
        if "missing" not in answer:
            self.rounds.append(answer)
            print(f"  {self.name}: {answer['all']:.2f} s", file=sys.stderr, flush=True)

    def close(self) -> None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait(timeout=60)


class Limit:
    """Reading n bytes that were written before: GB/s, in large pages or as they come."""

    def __init__(self, n_bytes: int, threads: int) -> None:
        self.kernels, self.threads = load_kernels(), threads
        numbers = torch.ones(max(n_bytes, 1 << 20) // 4)
        self.tensor = WeightBlock(numbers.nbytes).place(numbers)
        self.found: list[float] = []

    def measure(self) -> None:
        """Best of three in a row: the first may still find other engines' threads awake."""
        best = 0.0
        for _ in range(3):
            began = time.perf_counter()
            self.kernels.read_all(self.tensor.data_ptr(), self.tensor.numel(), self.threads)
            best = max(best, self.tensor.nbytes / (time.perf_counter() - began))
        self.found.append(best)


def run(arguments: argparse.Namespace, folder: Path, stack: ExitStack) -> list[Engine]:
    """Load everything, then let them take turns."""
    engines = []
    for name in chosen(arguments.only):
        began = time.perf_counter()
        engine = Engine(name, folder, arguments.threads, arguments.model)
        stack.callback(engine.close)
        seconds = time.perf_counter() - began
        print(f"{name:<16} {engine.missing or f'loaded in {seconds:.1f} s'}", flush=True)
        if not engine.missing:
            engines.append(engine)
    limits = {}
    try:
        for engine in engines:
            limits.setdefault(engine.n_bytes, Limit(engine.n_bytes, arguments.threads))
    except CodeUnavailable as error:
        print(f"no limit: {error}")
    for number in range(arguments.rounds + 1):
        for engine in engines:
            engine.ask(arguments.rows, arguments.prompt, arguments.new if number else 2)
            if engine.n_bytes in limits and number:
                limits[engine.n_bytes].measure()
        if not number:  # the first round warms up, with two tokens
            for engine in engines:
                engine.rounds.clear()
    for engine in engines:
        found = limits[engine.n_bytes].found if limits else []
        engine.limit = median(found) if found else float("nan")  # type: ignore[attr-defined]
    return engines


def chosen(only: Sequence[str]) -> list[str]:
    """Engines whose names begin with one of these; all that load quickly without any."""
    if not only:
        return ENGINES
    return [n for n in ENGINES + ONLY_WHEN_NAMED if any(n.startswith(one) for one in only)]


def table(engines: Sequence[Any], arguments: argparse.Namespace) -> str:
    lines = [
        "| engine | tokens/s | of the limit | first token, ms | prompt, tokens/s | weights, MB | limit, GB/s | peak memory, MB |",  # noqa: E501
        "|---|---|---|---|---|---|---|---|",
    ]
    for engine in engines:
        if not engine.rounds:
            lines.append(f"| {engine.name} | {engine.missing} | | | | | | |")
            continue
        first = median(one["first"] for one in engine.rounds)
        steps = arguments.new - 1
        # the time of the prompt is taken from the same round: both drift together
        spent = median(one["all"] - one["first"] for one in engine.rounds)
        speed = arguments.rows * steps / spent
        share = steps / spent * engine.n_bytes / engine.limit
        prompt = arguments.rows * arguments.prompt / first
        peak = max(one["peak"] for one in engine.rounds)
        lines.append(
            f"| {engine.name} | {speed:.1f} | {share:.0%} | {1e3 * first:.1f} | {prompt:.0f} | "
            f"{engine.n_bytes / 1e6:.0f} | {engine.limit / 1e9:.1f} | {peak:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    use_utf8()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="gpt2", help="one of our presets")
    parser.add_argument("--only", nargs="*", default=[], help="engines by the start of the name")
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--folder", type=Path, help="keep the converted models here")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        folder = arguments.folder
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        engines = run(arguments, folder, stack)
        print(
            f"\n{arguments.model}, {arguments.rows} row(s), {arguments.prompt} + {arguments.new} "
            f"tokens, {arguments.threads} thread(s), medians of {arguments.rounds} rounds\n"
        )
        print(table(engines, arguments))


if __name__ == "__main__":
    main()
