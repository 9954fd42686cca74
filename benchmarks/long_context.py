"""Long texts on a CPU: memory, time and quality over length, beside theory.

python benchmarks/long_context.py --data tinyshakespeare.txt --out pictures

Parts, each also alone with --part:

growth      prefill in pieces and decode, each cache, up to --longest tokens: seconds, milliseconds
            a token, peak memory of a process of its own; beside what the machine's arithmetic and
            bandwidth allow
caches      each cache side by side: bytes a token, tokens a second, difference from no cache;
            both beside the static cache with our C++ kernels ("kernels"), as `fromzero generate`
            decodes, and beside Hugging Face transformers' DynamicCache with the same weights
            ("transformers"), where it is installed
endless     a text streamed through the sliding cache: memory and speed early and late
perplexity  a small model trained here on --data: loss beyond the trained length per method
needle      a small model trained here to find a key: share of right answers per method and length

Ratios are of runs of one process, or of processes one after the other; --quick is for the tests.
On a machine with other work, --clock cpu counts the processor's seconds of one thread, ceilings
too, instead of seconds on the wall.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from long_context_readers import (
    PARTS_OF_PEER,
    PEER,
    WINDOW,
    Reader,
    has_peer,
    opener,
    settings_of,
)

from evaluation.needle import METHODS, NeedleTask, draw, needle_scores, table, train_retriever
from evaluation.perplexity import evaluate_tokens
from foundation.demonstration import new_figure, save_figure, use_utf8
from gpt_model.caches import CacheSettings
from gpt_model.config import GPTConfig, preset
from gpt_model.longer_context import extend_context
from gpt_model.memory import cache_memory
from gpt_model.model import GPT
from gpt_model.sizes import count_parameters, flops_per_token
from inference.generator import SamplingParams, TextGenerator
from tokenization.tokenizer import Tokenizer
from training.optimizer import build_optimizer, set_learning_rate

PARTS = ("growth", "caches", "endless", "perplexity", "needle")
PIECE = 512  # tokens of prefill at once
TRAINED = 128  # the context of the two models trained here


def clock() -> float:
    """Seconds on the wall, or of the processor where --clock cpu was given."""
    return time.process_time() if os.environ.get("LONG_CLOCK") == "cpu" else time.perf_counter()


def row(*cells: Any) -> None:
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def head(*cells: str) -> None:
    row(*cells)
    print("|" + "---|" * len(cells), flush=True)


# ── growth ───────────────────────────────────────────────────────────────────────────────────────


def growth_config(longest: int) -> GPTConfig:
    """A small model: 4 layers of 256, two key and value heads of 64."""
    sizes: dict[str, Any] = {"dim": 256, "n_heads": 4, "n_kv_heads": 2, "n_layers": 4}
    sizes |= PARTS_OF_PEER
    return preset("modern-micro", vocab_size=1024, max_seq_len=longest + 64, **sizes)


def resident(field: str = "VmRSS") -> int:
    """Bytes of this process now, or at most since `forget_peak` (VmHWM); 0 where nobody says."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    lines = status.read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def forget_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def grow(kind: str, length: int) -> dict[str, float]:
    """One cache at one length, in this process."""
    torch.manual_seed(0)
    model = GPT(growth_config(length)).eval()
    ids = torch.randint(1024, (1, length))
    with torch.inference_mode():
        opened = None if kind == "none" else opener(kind, model)
        warm = model if opened is None else opened(80)
        for piece in (ids[:, :64], ids[:, :1]):  # compiles, imports and allocates
            warm(piece)
        forget_peak()
        before = min(resident(), resident("VmHWM"))  # the kernel counts the two apart
        began = clock()
        if opened is None:  # the whole text at once: what pieces save
            model(ids, last_only=True)
            return {"prefill": clock() - began, "peak": resident("VmHWM") - before}
        read = opened(length + 64)
        for piece in ids.split(PIECE, dim=1):
            read(piece)
        prefill = clock() - began
        steps = []
        for _ in range(24):
            began = clock()
            read(ids[:, :1])
            steps.append(clock() - began)
    return {"prefill": prefill, "decode": median(steps), "peak": resident("VmHWM") - before}


def ceilings() -> tuple[float, float]:
    """Products a second and bytes a second of this machine, now."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    big = torch.randn(32 * 2**20)  # 128 MiB
    rates = []
    for work, amount in ((lambda: a @ b, 2 * 1024**3), (big.sum, big.nbytes)):
        work()
        seconds = []
        for _ in range(5):
            began = clock()
            work()
            seconds.append(clock() - began)
        rates.append(amount / min(seconds))
    return rates[0], rates[1]


def theory(config: GPTConfig, kind: str, length: int, rates: tuple[float, float]) -> list[float]:
    """Seconds of prefill from its operations, seconds of a token from the bytes it reads."""
    reach = min(length, WINDOW) if kind == "sliding" else length
    seen = length / 2 if reach == length else reach - reach * reach / (2 * length)
    one, two = (flops_per_token(config, n, training=False) for n in (1, 2))
    operations = length * (one + (two - one) * (seen - 1))
    read = count_parameters(config).total * 4
    read += cache_memory(config, reach, "int8" if kind == "int8" else "static")
    return [operations / rates[0], read / rates[1]]


def growth(longest: int, kinds: list[str]) -> None:
    if PEER in kinds and not has_peer():
        print(f"{PEER} is not installed here: left out")
        kinds = [kind for kind in kinds if kind != PEER]
    config, rates = growth_config(longest), ceilings()
    n_parameters = count_parameters(config).total
    print(f"\n{n_parameters / 1e6:.1f} M parameters, {torch.get_num_threads()} threads; ", end="")
    print(f"products {rates[0] / 1e9:.0f} GFLOP/s, reading {rates[1] / 1e9:.0f} GB/s\n")
    heading = ("cache", "length", "cache MB", "peak MB", "prefill s", "theory s", "ms/token")
    head(*heading, "theory ms")
    for kind in kinds:
        for length in sorted({max(1024, longest // 16), max(1024, longest // 4), longest}):
            words = [sys.executable, __file__, "--grow", kind, "--longest", str(length)]
            done = subprocess.run(words, capture_output=True, encoding="utf-8", check=True)
            found = json.loads(done.stdout)
            prefill, token = theory(growth_config(length), kind, length, rates)
            stored = cache_memory(growth_config(length), length + 64, settings_of(kind)) / 1e6
            cells = [kind, f"{length:,}", f"{stored:.1f}", f"{found['peak'] / 1e6:.0f}"]
            cells += [f"{found['prefill']:.2f}", f"{prefill:.2f}"]
            decode = f"{1e3 * found['decode']:.2f}" if "decode" in found else "–"
            row(*cells, decode, f"{1e3 * token:.2f}" if "decode" in found else "–")


# ── caches side by side ──────────────────────────────────────────────────────────────────────────


def caches(length: int, config: GPTConfig) -> None:
    """Decode at `length` of 124 M parameters; the caches take turns, step by step."""
    torch.manual_seed(0)
    model = GPT(config).eval()
    ids = torch.randint(config.vocab_size, (1, length))
    kinds: list[str] = ["static", "growing", "int8", "sliding", "kernels", PEER]
    kinds = [kind for kind in kinds if kind != PEER or has_peer()]
    opened: dict[str, Reader] = {}
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    logits: dict[str, torch.Tensor] = {}
    with torch.inference_mode():
        exact = model(ids, last_only=True).logits
        for kind in kinds:
            opened[kind] = opener(kind, model, length // 2)(config.max_seq_len)
            for piece in ids[:, :-1].split(PIECE, dim=1):
                opened[kind](piece)
        for _ in range(12):
            for kind in kinds:
                began = clock()
                found = opened[kind](ids[:, -1:])
                seconds[kind].append(clock() - began)
                logits.setdefault(kind, found)
    print(f"\n{count_parameters(config).total / 1e6:.0f} M parameters at {length} tokens, fp32\n")
    head("cache", "bytes/token", "MB at this length", "tokens/s", "largest change of a logit / σ")
    for kind in kinds:
        size = cache_memory(config, length, settings_of(kind, length // 2))
        change = (logits[kind] - exact).abs().max() / exact.std()
        cells = kind, f"{size / length:,.0f}", f"{size / 1e6:.1f}"
        row(*cells, f"{1 / median(seconds[kind][2:]):.1f}", f"{float(change):.1e}")


# ── a text without end ───────────────────────────────────────────────────────────────────────────


def endless(n_tokens: int) -> None:
    """A random model with a context of 256, as `fromzero generate --cache sliding` streams it."""
    torch.manual_seed(0)
    tokenizer = Tokenizer.characters(["abcdefghijklmnopqrstuvwxyz"])
    model = GPT(preset("modern-micro", vocab_size=tokenizer.vocab_size)).eval()
    never_end = {} if tokenizer.end_id is None else {tokenizer.end_id: -torch.inf}
    params = SamplingParams(max_new_tokens=n_tokens, seed=0, logit_bias=never_end)
    print(f"\nthe cache: {cache_memory(model.config, n_tokens, 'sliding') / 1024:.0f} KiB\n")
    head("tokens written", "tokens/s since the last line", "memory of the process, MB")
    written, began, start = 0, clock(), 0
    for piece in TextGenerator(model, tokenizer).stream("a", params, cache="sliding"):
        written += len(piece)
        if written % max(1, n_tokens // 8) == 0:
            now = clock()
            rate = (written - start) / (now - began)
            row(f"{written:,}", f"{rate:.0f}", f"{resident() / 1e6:.1f}")
            began, start = now, written


# ── perplexity beyond the trained length ─────────────────────────────────────────────────────────


def train_reader(ids: torch.Tensor, vocab_size: int, steps: int) -> GPT:
    """A small model of TRAINED tokens of context, on the first nine tenths of a text."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"n_layers": 4, "dim": 128, "n_heads": 4}
    model = GPT(preset("modern-micro", vocab_size=vocab_size, max_seq_len=TRAINED, **sizes))
    optimizer = build_optimizer(model, name="muon", learning_rate=0.01, weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        rate = min(1.0, (step + 1) / 20, (steps - step) / (0.5 * steps))
        set_learning_rate(optimizer, 0.01 * rate)
        starts = torch.randint(len(ids) - TRAINED - 1, (32, 1), generator=generator)
        block = ids[starts + torch.arange(TRAINED + 1)]
        loss = model(block[:, :-1], block[:, 1:], need_logits=False).loss
        assert loss is not None
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def streamed(model: GPT, ids: torch.Tensor, settings: CacheSettings) -> Iterator[torch.Tensor]:
    """The loss of every token but the first, several streams side by side."""
    with torch.inference_mode():
        cache = model.make_cache(len(ids), kind=settings)
        for start in range(0, ids.shape[1] - 1, PIECE):
            inputs = ids[:, start : min(start + PIECE, ids.shape[1] - 1)]
            targets = ids[:, start + 1 : start + 1 + inputs.shape[1]]
            yield model(inputs, targets.contiguous(), cache=cache, reduction="none").loss


def perplexity(data: Path, steps: int, n_tokens: int, multiples: tuple[int, ...]) -> None:
    text = data.read_text(encoding="utf-8")
    tokenizer = Tokenizer.characters([text])
    ids = torch.tensor(tokenizer.encode(text))
    split = len(ids) * 9 // 10
    began = clock()
    model = train_reader(ids[:split], tokenizer.vocab_size, steps)
    print(f"\n{data.name}, characters, trained on {TRAINED} tokens for {steps} steps in ", end="")
    print(f"{clock() - began:.0f} s; loss of {n_tokens} held-out tokens\n")
    held_out = ids[split : split + n_tokens + 1]
    head("method", *(f"{multiple}×" for multiple in multiples))
    for method in METHODS[:-1]:
        cells = []
        for multiple in multiples:  # each token scored once, with at least half of the context
            opened = multiple if method == "dynamic" else max(multiples)
            extend_context(model, TRAINED * opened, method)
            context = TRAINED * multiple
            found = evaluate_tokens(
                model, held_out.tolist(), context=context, stride=context // 2, batch_size=4
            )
            cells.append(f"{found.loss:.3f}")
        row(method, *cells)
    extend_context(model, TRAINED, "none")
    again = evaluate_tokens(model, held_out.tolist(), context=TRAINED, stride=TRAINED // 2)
    print(f"\nread again by halves (as --sliding does): {again.loss:.3f}; streamed without end:\n")
    print("(8 streams; loss of the first TRAINED tokens of a stream, and of those after it)\n")
    head("cache", "first", "after", "KiB a stream")
    streams = held_out[: len(held_out) // 8 * 8].view(8, -1)
    for n_sinks in (0, 1, 4, 16):
        settings = CacheSettings("sliding", n_sinks, TRAINED - n_sinks)
        losses = torch.cat(
            [piece.view(8, -1) for piece in streamed(model, streams, settings)], dim=1
        )
        size = cache_memory(model.config, 10**6, settings) / 1024
        first, after = losses[:, :TRAINED].mean(), losses[:, TRAINED:].mean()
        row(f"sliding, {n_sinks} sinks", f"{first:.3f}", f"{after:.3f}", f"{size:.0f}")


# ── needle ───────────────────────────────────────────────────────────────────────────────────────


def needle(out: Path | None, steps: int, multiples: tuple[float, ...], n_texts: int) -> None:
    task = NeedleTask()
    began = clock()
    model = train_retriever(task, TRAINED, steps=steps)
    print(f"\n{steps} steps in {clock() - began:.0f} s; ", end="")
    depths = (0.0, 0.25, 0.5, 0.75, 1.0)
    lengths = [round(TRAINED * multiple) for multiple in multiples]
    scores = needle_scores(model, task, lengths, depths, n_texts=n_texts)
    print(f"mean over {len(depths)} depths of {n_texts} texts; guessing {1 / task.n_values:.0%}\n")
    head(*table(scores, TRAINED).splitlines()[0].split())
    for line in table(scores, TRAINED).splitlines()[1:]:
        row(*line.split())
    if out is not None:
        draw(scores, depths, TRAINED, out / "needle.png")
        figure, axis = new_figure()
        for method, found in scores.items():
            axis.plot(lengths, [sum(f) / len(f) for f in found.values()], "o-", label=method)
        axis.axvline(TRAINED, color="grey", linestyle=":")
        axis.set(
            xlabel="length", ylabel="right answers", xscale="log", title="needle in a haystack"
        )
        axis.legend()
        save_figure(figure, out / "needle_over_length.png")
        print(f"\npictures in {out}")


def main() -> None:
    use_utf8()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--data", type=Path, help="a text for the part `perplexity`")
    parser.add_argument("--out", type=Path, help="a folder for the pictures")
    parser.add_argument("--longest", type=int, default=32768)
    kinds = ["none", "static", "int8", "sliding", "kernels", PEER]
    parser.add_argument("--kinds", nargs="+", choices=kinds, default=kinds, help="for growth")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, figures mean nothing")
    parser.add_argument("--clock", default="wall", choices=["wall", "cpu"])
    parser.add_argument("--grow", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.clock == "cpu":  # the processes of growth inherit both
        os.environ |= {"LONG_CLOCK": "cpu", "OMP_NUM_THREADS": "1"}
        torch.set_num_threads(1)
    if arguments.grow is not None:
        print(json.dumps(grow(arguments.grow, arguments.longest)))
        return
    quick, parts = arguments.quick, [arguments.part]
    if arguments.part is None:
        parts = list(PARTS)
    if "perplexity" in parts and arguments.data is None:
        parser.error("the part perplexity needs --data FILE")
    if "growth" in parts:
        growth(1024 if quick else arguments.longest, arguments.kinds)
    if "caches" in parts:
        large: dict[str, Any] = {"dim": 768, "n_heads": 12, "n_layers": 12, "max_seq_len": 2048}
        large_config = preset("modern-small", **large, **PARTS_OF_PEER)
        caches(*((64, growth_config(64)) if quick else (2000, large_config)))
    if "endless" in parts:
        endless(80 if quick else 40_000)
    if "perplexity" in parts:
        multiples = (1, 2) if quick else (1, 2, 4, 8)
        perplexity(arguments.data, *((3, 1000) if quick else (1200, 32768)), multiples)
    if "needle" in parts:
        sizes = (3, (1.0, 2.0), 4) if quick else (200, (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0), 64)
        needle(arguments.out, *sizes)


if __name__ == "__main__":
    main()
