"""`fromzero quantize`：把模型的权重变成 8 或 4 个比特，存成一个小得多的模型目录。"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from fromzero.option_types import (
    MaybeInt,
    MaybePath,
    MaybeText,
    free_directory,
    newest_run,
    open_model,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from gpt_model.model import GPT
    from tokenization.tokenizer import Tokenizer

DEFAULT_CORPUS = "python-docs"
READ_AHEAD = 8  # read this many times the calibration's tokens, and spread its windows over them
HELD_OUT = 10  # every tenth part of them is kept for the loss before and after
EXAM_TOKENS = 32_768


@dataclass(frozen=True, kw_only=True)
class Options:
    """Store a model's weights in 8 or 4 bits: a model directory that every command reads.

    rtn rounds each weight; gptq and awq run the model on some text first and choose the integers
    by what they do to the outputs. 8 bits lose next to nothing; 4 bits want gptq.

    Examples:
        fromzero quantize --bits 8
        fromzero quantize --model runs/gpt-micro --method gptq --out runs/small
        fromzero quantize --model runs/gpt2 --method awq --calibration my.txt --group-size 128
        fromzero quantize --model runs/gpt-micro --method gptq --plot errors.png
        fromzero finetune --model runs/small --method qlora --data talks.json
    """

    model: MaybePath = None
    """a model or run directory; without it, the newest one in runs/"""
    out: MaybePath = None
    """the model directory to write; without it a new one in runs/"""
    bits: int = 4
    """8 or 4"""
    method: str = "rtn"
    """rtn, gptq or awq"""
    group_size: int = 64
    """so many weights of a row share one scale; 0 = the whole row"""
    zero_points: bool = False
    """let the range of a group lie on one side of zero; costs a byte for each group"""
    embeddings: int = 8
    """bits of the vocabulary's table, which is often shared with the last layer; 0 = leave it"""
    skip: tuple[str, ...] = ()
    """layers to leave alone, by the last part of their names, such as down_proj"""
    act_order: bool = False
    """gptq: round the columns with the largest inputs first"""
    calibration: MaybeText = None
    """text to run the model on: a file, folder, pattern or corpus name; without it gptq and awq
    take what the run was trained on, else python-docs"""
    windows: int = 128
    """how many pieces of that text"""
    length: MaybeInt = None
    """how many tokens each; without it, all that the model can see at once, at most 512"""
    plot: MaybePath = None
    """draw the error of every layer into this file (png, svg, pdf)"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps"""


def run(options: Options) -> int:
    """Model directory → smaller model directory, and a report."""
    from foundation.checks import check_choice, check_int
    from gpt_model.huggingface_files import refuse_existing
    from gpt_model.model_directory import find_model_directory, stored_quantization
    from gpt_model.quantized_directory import expected_bytes
    from inference.block_by_block import METHODS
    from inference.quantization import linear_layers, quantize
    from transformer_basics.integer_weights import WeightFormat

    # ① what can be wrong is found before anything takes long
    check_choice("method", options.method, METHODS)
    check_choice("embeddings", str(options.embeddings), ["0", "4", "8"])
    check_int("windows", options.windows, 1)
    check_int("group_size", options.group_size, 0)
    group_size = options.group_size or None
    form = WeightFormat(options.bits, group_size, options.zero_points)
    table = WeightFormat(options.embeddings, group_size) if options.embeddings else None
    looks = needs_text(options)
    directory = find_model_directory(newest_run() if options.model is None else options.model)
    if stored_quantization(directory) is not None:
        raise ValueError(f"{directory} is quantized already; quantize the model it was made from")
    model, tokenizer, _ = open_model(directory, options.device)
    names = sorted({name.rpartition(".")[2] for name in linear_layers(model)})
    for name in options.skip:  # a slip would round what was to be left alone
        check_choice("skip", name, names)
    out = options.out or free_directory(Path("runs"), f"{run_name(directory)}-{options.bits}bit")
    refuse_existing(out)
    length = min(512, model.config.max_seq_len)
    if options.length is not None:
        length = check_int("length", options.length, 1, model.config.max_seq_len)
    # ② the text
    ids = exam = None
    if looks:
        source = options.calibration or trained_on(directory)
        ids, exam = read_windows(source, tokenizer, options.windows, length)
        print(f"calibration  {len(ids)} windows of {length} tokens of {source}", flush=True)
    before = None if exam is None else loss_of(model, exam, length)
    n_parameters, plain_bytes = model.num_parameters(), weight_bytes(model)
    # ③ round, save
    with progress() as watch:
        quantize(
            model,
            form.bits,
            form.group_size,
            ("lm_head", *options.skip),
            zero_points=form.zero_points,
            embeddings=None if table is None else table.bits,
            method=options.method,
            calibration=ids,
            act_order=options.act_order,
            watch=watch,
        )
    save(model, tokenizer, out, directory)
    print(f"model        {directory}, {n_parameters:,} parameters")
    report_layers(model, options)
    if exam is not None and before is not None:
        after = loss_of(model, exam, length)
        print(f"held out     loss {before:.4f} -> {after:.4f} ({exam.numel():,} tokens)")
    width = model.dtype.itemsize  # of what is no integer
    theory = None if options.skip else expected_bytes(model.config, form, table, width)
    report_size(model, out, plain_bytes, theory)
    warn_of_padding(model, options)
    print(f"load time    {milliseconds(directory)} -> {milliseconds(out)}, checked and mapped")
    if options.plot is not None:
        draw(model, f"{options.method}, {options.bits} bits", options.plot)
    print(f"saved        {out}")
    print(f"go on: fromzero generate --model {out} --prompt ...")
    return 0


def needs_text(options: Options) -> bool:
    """Is the model to be run on text? Refuse options that would then not be looked at."""
    from foundation.demonstration import check_picture

    looks = options.method != "rtn" or options.calibration is not None or options.plot is not None
    if options.act_order and options.method != "gptq":
        raise ValueError(f"--act-order belongs to --method gptq, got --method {options.method}")
    if options.plot is not None and not options.plot.absolute().parent.is_dir():
        raise ValueError(f"cannot write {options.plot}: its folder does not exist")
    if options.plot is not None:
        check_picture(options.plot)
    return looks


def run_name(directory: Path) -> str:
    """How to call what a model directory or a run's checkpoint holds."""
    whole = directory.resolve()
    return whole.parent.name if whole.name.startswith("step-") else whole.name


def trained_on(directory: Path) -> str:
    """The corpus that the run names in its options; python-docs where nothing is known."""
    from foundation.files import read_json
    from fromzero.training_options import OPTIONS_FILE

    for folder in (directory, directory.resolve().parent):
        if (folder / OPTIONS_FILE).is_file():
            values = read_json(folder / OPTIONS_FILE)
            data = values.get("data") if isinstance(values, dict) else None
            if isinstance(data, str):
                return data
    return DEFAULT_CORPUS


def read_windows(
    source: str, tokenizer: Tokenizer, n_windows: int, length: int
) -> tuple[Tensor, Tensor | None]:
    """Windows to calibrate on, and the end of the text, unseen, for the loss before and after."""
    import torch

    from inference.calibration import calibration_windows
    from training.corpus import load_corpus

    try:
        documents = load_corpus(source)
        first = next(documents)
    except ValueError as error:
        raise ValueError(f"{error}; --calibration names the text to calibrate on") from None
    wanted = READ_AHEAD * n_windows * length
    ids: list[int] = []
    for document in chain([first], documents):
        mark = [] if tokenizer.end_id is None else [tokenizer.end_id]
        ids += [*(mark or tokenizer.start_ids), *tokenizer.encode(document.text)]
        if len(ids) >= wanted:
            break
    ids = ids[:wanted]
    cut = len(ids) - min(len(ids) // HELD_OUT, EXAM_TOKENS)
    exam = torch.tensor(ids[cut:]) if len(ids) - cut > length else None
    seen = ids if exam is None else ids[:cut]
    if len(seen) < length:
        raise ValueError(
            f"{source} has {len(seen)} tokens, calibration needs at least one window of {length}; "
            "give more text (--calibration) or shorter windows (--length)"
        )
    return calibration_windows(seen, n_windows, length), exam


def loss_of(model: GPT, tokens: Tensor, context: int) -> float:
    """The mean loss on a piece of text."""
    from evaluation.perplexity import evaluate_tokens

    return evaluate_tokens(model, tokens, context=context).loss


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """A line on a terminal that says how far it is."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda text: None
        return
    with console.status("quantizing") as status:
        yield lambda text: status.update(f"quantizing: {text}")


def weight_bytes(model: GPT) -> int:
    """Bytes of all that is stored; a shared table counts once."""
    from gpt_model.model_directory import state_to_save

    return sum(tensor.nbytes for tensor in state_to_save(model).values())


def report_layers(model: GPT, options: Options) -> None:
    """How many layers, in which form, and which of them suffered most."""
    from inference.quantization import quantized_layers

    layers = {n: part for n, part in quantized_layers(model).items() if n.startswith("blocks.")}
    group = f"groups of {options.group_size}" if options.group_size else "one scale a row"
    zero = ", zero points" if options.zero_points else ""
    table = f"; vocabulary in {options.embeddings} bits" if options.embeddings else ""
    form = f"{options.bits} bits ({options.method}, {group}{zero}){table}"
    print(f"layers       {len(layers)} in {form}")
    errors = {n: part.output_error for n, part in layers.items() if part.output_error is not None}
    if errors:
        mean = sum(errors.values()) / len(errors)
        worst = max(errors, key=lambda name: errors[name])
        print(f"layer error  mean {mean:.2%}, worst {errors[worst]:.2%} ({worst})")


def save(model: GPT, tokenizer: Tokenizer, out: Path, directory: Path) -> None:
    """The model directory, with what the original carried for other programs."""
    from foundation.files import atomic_directory
    from gpt_model.huggingface_files import carry
    from gpt_model.model_directory import MODEL_KIND, write_model_files

    with atomic_directory(out, kind=MODEL_KIND) as temporary:
        write_model_files(model, temporary, tokenizer)
        carry(directory, temporary)


def report_size(model: GPT, out: Path, plain_bytes: int, theory: int | None) -> None:
    """Bytes before, after and by the formula, which knows of no layers left alone."""
    from gpt_model.model_directory import WEIGHTS_FILE
    from gpt_model.sizes import human

    on_disk, in_memory = (out / WEIGHTS_FILE).stat().st_size, weight_bytes(model)
    line = f"{human(plain_bytes, 'B')} -> {human(on_disk, 'B')} on disk"
    line += f", {human(in_memory, 'B')} in memory"
    if theory is not None:
        line += f", {human(theory, 'B')} by the formula"
    print(f"size         {line}")


def warn_of_padding(model: GPT, options: Options) -> None:
    """Rows that no whole number of groups fills are padded: beyond a tenth, say so."""
    from transformer_basics.quantized_linear import quantized_parts

    parts = {id(part.packed): part for part in quantized_parts(model).values()}.values()
    weights = sum(part.rows * part.columns for part in parts)  # a shared table counts once
    stored = sum(part.scale.numel() * part.group_size for part in parts)
    if 10 * stored > 11 * weights:
        warnings.warn(
            f"--group-size {options.group_size} does not fill the rows: {stored:,} integers "
            f"are stored for {weights:,} weights; a size that divides them, or 0, wastes none",
            stacklevel=2,
        )


def milliseconds(directory: Path) -> str:
    """How long a model directory takes to load, the check of its files included."""
    from gpt_model.model import GPT

    started = time.perf_counter()
    GPT.load(directory)
    return f"{1000 * (time.perf_counter() - started):.0f} ms"


def draw(model: GPT, title: str, path: Path) -> None:
    """A picture of the errors by layer."""
    from inference.error_picture import draw_errors, errors_by_layer

    draw_errors({title: errors_by_layer(model)}, path)
    print(f"picture      {path}")
