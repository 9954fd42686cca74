"""What rounding the weights costs: loss on unseen text, by bits, group and method.

    python benchmarks/quantization_quality.py --data book.txt --folder work
    python benchmarks/quantization_quality.py --data book.txt --model runs/mine
    DECODE_PEERS=/path/to/venv/bin/python python benchmarks/quantization_quality.py --data book.txt

The first nine tenths of the text train a model (`fromzero train`, once; kept in --folder) and
calibrate; the rest is the exam. A model given by --model should not have seen the last tenth.
Every row of the table sees the same windows. gptq and awq choose their integers on --draws draws of
calibration windows; ± is the standard deviation over the draws. Beside the loss stands the
divergence KL(fp32 || rounded) in nats a token: it is not pulled down by luck.

awq+gptq scales and folds as awq does, then compensates as gptq does: an entry added to METHODS here.
Peers are run by the interpreter that DECODE_PEERS names, or by this one; what is missing is named.
"""  # noqa: E501

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import mean, median, stdev
from typing import NamedTuple

import torch
from torch import Tensor, nn

from foundation.demonstration import use_utf8
from fromzero.main import main as fromzero
from fromzero.option_types import open_model
from gpt_model.config import preset
from gpt_model.gguf_export import export_gguf
from gpt_model.huggingface_writing import save_huggingface
from gpt_model.model import GPT
from gpt_model.model_directory import WEIGHTS_FILE, save_model
from gpt_model.quantized_directory import expected_bytes
from inference.block_by_block import METHODS, Work, compensate_errors, fold_loud_channels
from inference.quantization import dequantize, quantize, quantized_bytes
from tokenization.tokenizer import Tokenizer
from transformer_basics.integer_weights import WeightFormat, decode, encode

ROOT = Path(__file__).resolve().parents[1]
# a Llama in small, which every peer reads
SHAPE = ["--preset", "modern-micro", "--dim", "256", "--n-layers", "4", "--n-heads", "8"]
SHAPE += ["--n-kv-heads", "4", "--ffn-dim", "704", "--activation", "silu", "--gated-ffn", "True"]
SHAPE += ["--qk-norm", "False", "--vocab-size", "1024", "--max-seq-len", "128"]
SHAPE += ["--tokenizer", "bpe:llama-bpe", "--batch-size", "16", "--learning-rate", "3e-3"]
SHAPE += ["--max-epochs", "20", "--eval-every", "250"]
GROUPS = (None, 128, 64, 32)
LOOKING = ("gptq", "awq", "awq+gptq")
TABLE = "| bits | a scale for | method | bits a weight | perplexity | loss − fp32 | KL | seconds |"


class Score(NamedTuple):
    """Mean loss and divergence from fp32 in nats a token."""

    loss: float
    kl: float


class Exam:
    """The held-out windows, and what the fp32 model says about them."""

    def __init__(self, model: GPT, windows: Tensor) -> None:
        self.windows = windows
        self.whole = [logits.log_softmax(dim=-1) for logits in self.answers(model)]

    @torch.no_grad()
    def answers(self, model: GPT) -> Iterator[Tensor]:
        model.eval()
        for rows in self.windows.split(16):
            yield model(rows[:, :-1]).logits.float()

    def score(self, model: GPT) -> Score:
        loss = kl = 0.0
        for rows, logits, whole in zip(
            self.windows.split(16), self.answers(model), self.whole, strict=True
        ):
            found = logits.log_softmax(dim=-1)
            loss -= float(found.gather(-1, rows[:, 1:, None]).double().sum())
            kl += float((whole.exp() * (whole - found)).double().sum())
        n_tokens = self.windows[:, 1:].numel()
        return Score(loss / n_tokens, kl / n_tokens)


def fold_then_compensate(work: Work) -> None:
    """AWQ's scales, folded; then GPTQ on the folded weights, stage by stage."""
    fold_loud_channels(work)
    compensate_errors(work)


def one_scale_each(model: GPT, bits: int) -> GPT:
    """Per tensor: one scale for each matrix of the blocks, restored at once."""
    for module in model.blocks.modules():
        if isinstance(module, nn.Linear):
            weight = module.weight.data
            row = weight.reshape(1, -1)
            stored = encode(row, WeightFormat(bits, None))
            module.weight.data = decode(stored, row.shape[1]).view_as(weight)
    return model


def bits_each(form: WeightFormat, columns: int) -> float:
    """Bits of storage for a weight of a row so wide."""
    return 8 * form.row_bytes(columns) / columns


def windows_of(ids: Tensor, length: int, count: int, seed: int | None = None) -> Tensor:
    """So many windows without overlap: evenly spaced, or a draw."""
    places = len(ids) // length
    count = min(count, places)
    if seed is None:
        chosen = torch.linspace(0, places - 1, count).long()
    else:
        chosen = torch.randperm(places, generator=torch.Generator().manual_seed(seed))[:count]
    return torch.stack([ids[i * length : (i + 1) * length] for i in chosen.tolist()])


def spread(values: Sequence[float], digits: int) -> str:
    """mean ± standard deviation; alone, the value."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{mean(values):.{digits}f} ± {stdev(values):.{digits}f}"


class Quality:
    """The table of losses, a row at a time."""

    def __init__(self, model: GPT, train: Tensor, exam: Exam, arguments: argparse.Namespace):
        self.model, self.train, self.exam, self.arguments = model, train, exam, arguments
        self.whole = exam.score(model)
        print(TABLE + "\n" + "|---" * 8 + "|")
        print(f"| 32 | – | fp32 | 32 | {perplexity(self.whole.loss)} | 0 | 0 | |", flush=True)

    def row(
        self,
        form: WeightFormat,
        method: str,
        seeds: Iterable[int | None],
        name: str = "",
        windows: int = 0,
        tables: int | None = None,
        act_order: bool = False,
    ) -> None:
        """Quantize once for each draw, score, print."""
        scores, seconds = [], []
        for seed in seeds:
            made: nn.Module = copy.deepcopy(self.model)
            ids = None
            if seed is not None:
                count = windows or self.arguments.windows
                ids = windows_of(self.train, self.exam.windows.shape[1] - 1, count, seed)
            began = time.perf_counter()
            quantize(
                made,
                form.bits,
                form.group_size,
                method=method,
                calibration=ids,
                embeddings=tables,
                zero_points=form.zero_points,
                act_order=act_order,
            )
            seconds.append(time.perf_counter() - began)
            plain = dequantize(made)
            assert isinstance(plain, GPT)
            scores.append(self.exam.score(plain))
        size = "a row" if form.group_size is None else str(form.group_size)
        width = bits_each(form, self.model.config.dim)
        self.show(f"| {form.bits} | {size} | {name or method} | {width:.2f}", scores, seconds)

    def per_tensor(self, bits: int) -> None:
        score = self.exam.score(one_scale_each(copy.deepcopy(self.model), bits))
        self.show(f"| {bits} | a matrix | rtn | {bits:.2f}", [score], [])

    def show(self, start: str, scores: Sequence[Score], seconds: Sequence[float]) -> None:
        losses = [score.loss - self.whole.loss for score in scores]
        ppl = perplexity(self.whole.loss + mean(losses))
        kl = spread([score.kl for score in scores], 5)
        spent = f"{median(seconds):.1f}" if seconds else ""
        print(f"{start} | {ppl} | {spread(losses, 4)} | {kl} | {spent} |", flush=True)

    def run(self) -> None:
        draws = range(self.arguments.draws)
        for bits in (8, 4):
            self.per_tensor(bits)
            for group in GROUPS:
                self.row(WeightFormat(bits, group), "rtn", [None])
                for method in LOOKING if bits == 4 else ():
                    self.row(WeightFormat(4, group), method, draws)
        form = WeightFormat(4, 64)
        print("\n4 bits, groups of 64; one thing changed\n\n" + TABLE + "\n" + "|---" * 8 + "|")
        self.row(WeightFormat(4, 64, True), "rtn", [None], "rtn, zero points")
        self.row(form, "gptq", draws, "gptq, act_order", act_order=True)
        for tables in (8, 4):
            self.row(form, "rtn", [None], f"rtn, vocabulary in {tables} bits", tables=tables)
        for count in self.arguments.sizes:
            for method in ("gptq", "awq"):
                self.row(form, method, draws, f"{method}, {count} windows", windows=count)
        # what llama.cpp calls q4_0 and q8_0: the vocabulary like everything else
        for bits in (8, 4):
            name = f"rtn, vocabulary too (q{bits}_0)"
            self.row(WeightFormat(bits, 32), "rtn", [None], name, tables=bits)


def perplexity(loss: float) -> str:
    return f"{torch.tensor(loss).double().exp():.3f}"


def sizes(models: dict[str, GPT], folder: Path, rounds: int) -> None:
    """Bytes on disk and in memory beside the formula, and the time to load."""
    print(
        "\n| model | form | on disk | in memory | formula | off | load, ms |\n" + "|---" * 7 + "|"
    )
    forms = [(None, None), (8, 64), (4, 64), (4, 32)]
    for name, model in models.items():
        made: dict[str, tuple[Path, int, int]] = {}
        for bits, group in forms:
            one = copy.deepcopy(model)
            label, theory = "fp32", 4 * model.num_parameters()
            if bits is not None:
                quantize(one, bits, group, embeddings=8)
                label = f"{bits} bits, {group}; vocabulary 8"
                form, table = WeightFormat(bits, group), WeightFormat(8, group)
                theory = expected_bytes(model.config, form, table)
            where = folder / f"{name}-{bits}-{group}"
            if not where.exists():
                save_model(one, where)
            held = sum(p.nbytes for p in one.parameters()) + quantized_bytes(one)
            made[label] = where, held, theory
        spent: dict[str, list[float]] = {label: [] for label in made}
        for _ in range(rounds):
            for label, (where, _, _) in made.items():
                began = time.perf_counter()
                GPT.load(where)
                spent[label].append(1e3 * (time.perf_counter() - began))
        for label, (where, held, theory) in made.items():
            disk = (where / WEIGHTS_FILE).stat().st_size
            off = max(abs(disk / theory - 1), abs(held / theory - 1))
            print(
                f"| {name} | {label} | {disk / 1e6:.3f} MB | {held / 1e6:.3f} MB | "
                f"{theory / 1e6:.3f} MB | {off:.2%} | {median(spent[label]):.0f} |",
                flush=True,
            )
            # the file's header is 3 % of a model only where the model is next to nothing
            assert off < 0.03 or theory < 1e6, (name, label, disk, held, theory)


def peers(model: GPT, whole: float, windows: Tensor, folder: Path) -> None:
    """The same exam in other programs."""
    if not (folder / "hf").is_dir():
        save_huggingface(model, folder / "hf")
    (folder / "windows.json").write_text(json.dumps(windows.tolist()), encoding="utf-8")
    print("\n| peer | perplexity | loss − our fp32 |\n|---|---|---|")
    try:
        if not (folder / "f32.gguf").is_file():
            export_gguf(model, folder / "f32.gguf", weight_type="f32")
    except (ImportError, ValueError) as error:
        print(f"| GGUF not written | {error} | |")
    command = [os.environ.get("DECODE_PEERS", sys.executable)]
    command += [str(ROOT / "benchmarks" / "quantization_peers.py"), str(folder)]
    with (folder / "peers.log").open("w", encoding="utf-8") as log:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=log, encoding="utf-8")
    for line in done.stdout.splitlines():
        one = json.loads(line)
        if "loss" in one:
            gap = f"{one['loss'] - whole:+.4f}"
            print(f"| {one['peer']} | {perplexity(one['loss'])} | {gap} |")
        else:
            print(f"| {one['peer']} | {one['missing']} | |")
    if done.returncode:
        print(f"| ended with code {done.returncode} | see {folder / 'peers.log'} | |")


def prepared(arguments: argparse.Namespace, folder: Path) -> tuple[GPT, Tokenizer, Tensor, Tensor]:
    """The model, its tokenizer, and the ids of both parts of the text."""
    text = arguments.data.read_text(encoding="utf-8")
    cut = text.find("\n", len(text) * 9 // 10) + 1
    if not cut or len(text) - cut < 100:
        raise SystemExit(f"{arguments.data} has no line that could begin the last tenth")
    where = arguments.model or folder / "run"
    if not where.is_dir():
        (folder / "train.txt").write_text(text[:cut], encoding="utf-8", newline="\n")
        words = ["train", "--data", str(folder / "train.txt"), "--out", str(where), *SHAPE]
        words += ["--data-dir", str(folder / "shards"), "--track", "none", "--no-plot"]
        words += ["--steps", str(arguments.steps)]
        if fromzero([*words, *arguments.train_options]):
            raise SystemExit("training failed")
    model, tokenizer, _ = open_model(where, "cpu")
    train, exam = (torch.tensor(tokenizer.encode(part)) for part in (text[:cut], text[cut:]))
    return model.float().eval(), tokenizer, train, exam


def main() -> None:
    use_utf8()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="a text file")
    parser.add_argument("--model", type=Path, help="instead of training one")
    parser.add_argument("--folder", type=Path, help="keep the trained and converted models here")
    parser.add_argument("--steps", type=int, default=1000, help="of training")
    parser.add_argument("--train-options", nargs="*", default=[], help="more for fromzero train")
    parser.add_argument("--draws", type=int, default=3, help="of calibration windows")
    parser.add_argument("--windows", type=int, default=64, help="in one calibration")
    parser.add_argument("--sizes", type=int, nargs="*", default=[4, 256], help="other calibrations")
    parser.add_argument("--exam", type=int, default=128, help="held-out windows")
    parser.add_argument("--rounds", type=int, default=5, help="of loading")
    parser.add_argument("--quick", action="store_true", help="tiny: does it run?")
    parser.add_argument(
        "--part", nargs="*", default=["quality", "sizes", "peers"], help="which tables"
    )
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.steps, arguments.draws, arguments.windows, arguments.exam = 3, 2, 4, 4
        arguments.sizes, arguments.rounds = [2], 1
        arguments.train_options += ["--dim", "32", "--n-heads", "2", "--n-kv-heads", "1"]
        arguments.train_options += ["--ffn-dim", "48", "--n-layers", "1", "--vocab-size", "300"]
        arguments.train_options += ["--max-seq-len", "32", "--batch-size", "2"]
    with ExitStack() as stack:
        folder = arguments.folder
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        METHODS.setdefault("awq+gptq", fold_then_compensate)
        stack.callback(METHODS.pop, "awq+gptq")
        measure(arguments, folder)


def measure(arguments: argparse.Namespace, folder: Path) -> None:
    model, _, train, held_out = prepared(arguments, folder)
    windows = windows_of(held_out, model.config.max_seq_len + 1, arguments.exam)
    exam = Exam(model, windows)
    print(
        f"{model.num_parameters():,} parameters, {windows[:, 1:].numel():,} held-out tokens, "
        f"{arguments.draws} draws of {arguments.windows} windows of {windows.shape[1] - 1}\n"
    )
    parts: dict[str, Callable[[], None]] = {
        "quality": lambda: Quality(model, train, exam, arguments).run(),
        "sizes": lambda: sizes(shapes(model, arguments.quick), folder, arguments.rounds),
        "peers": lambda: peers(model, exam.score(model).loss, windows, folder),
    }
    for part in arguments.part:
        parts[part]()


def shapes(model: GPT, quick: bool) -> dict[str, GPT]:
    """Whose bytes are counted: this model, and one with random weights as large as gpt2."""
    if quick:
        return {"this": model}
    torch.manual_seed(0)
    return {"this": model, "gpt2": GPT(preset("gpt2")).eval()}


if __name__ == "__main__":
    main()
