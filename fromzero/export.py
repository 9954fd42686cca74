"""`fromzero export`：把模型写成别家程序读得进的样子。"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from foundation.checks import check_choice
from fromzero.option_types import (
    MaybePath,
    MaybeText,
    holds_adapter,
    open_model,
    open_weights,
    parse_bytes,
)

if TYPE_CHECKING:
    from gpt_model.gguf_export import GGUFSummary
    from gpt_model.model import GPT
    from tokenization.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Options:
    """Write a model in the layout of another program.

    huggingface: a folder for transformers, vLLM and SGLang. A model whose parts no family there
    has is refused. A LoRA adapter is exported for PEFT with --base.
    gguf: one file for llama.cpp and Ollama, the tokenizer included.

    Examples:
        fromzero export runs/gpt-micro --to exported
        fromzero export runs/llama --to exported --dtype bf16 --max-shard-size 2GB
        fromzero export runs/gpt-micro --adapter runs/adapter --to merged
        fromzero export runs/adapter --base runs/gpt-micro --to exported-adapter
        fromzero export runs/gpt-micro --to gpt-micro.gguf --format gguf --pretokenizer llama-bpe
        fromzero export runs/qwen3 --to qwen3.gguf --format gguf --type q8_0
        fromzero export runs/small-4bit --to small.gguf --format gguf
        fromzero export runs/gpt-micro --to ids-only.gguf --format gguf --without-tokenizer
    """

    directory: tyro.conf.Positional[Path]
    """a model directory or a run; with --base, an adapter directory"""
    to: Path
    """what to write"""
    format: str = "huggingface"
    """which layout: huggingface or gguf"""
    adapter: MaybePath = None
    """merge this LoRA adapter into the model first"""
    without_tokenizer: bool = False
    """leave the tokenizer out; the program is then fed with token ids"""
    base: MaybePath = None
    """huggingface: the directory is a LoRA adapter for this model"""
    dtype: MaybeText = None
    """huggingface: the type of the weights: fp32 or bf16; without it, as saved"""
    max_shard_size: MaybeText = None
    """huggingface: weights beyond this go into the next file; without it 5GB"""
    type: MaybeText = None
    """gguf: how the matrices are stored: f32, f16 or q8_0; without it f16, and for a model of
    `fromzero quantize` stored: its integers as they are, in q4_0 and q8_0"""
    pretokenizer: MaybeText = None
    """gguf: split text by this rule of llama.cpp's, where it does not know the tokenizer's own;
    some token ids then differ from training"""


# What one format alone knows; given to another, it would be ignored in silence.
OWN_OPTIONS = {
    "huggingface": ("base", "dtype", "max_shard_size"),
    "gguf": ("type", "pretokenizer"),
}


def run(options: Options) -> int:
    """Hand over to the writer of the format."""
    from gpt_model.huggingface_files import refuse_existing

    chosen = check_choice("format", options.format, FORMATS)
    for name in (name for each, own in OWN_OPTIONS.items() if each != chosen for name in own):
        if getattr(options, name) is not None:
            option = name.replace("_", "-")
            raise ValueError(f"--{option} is of no use with --format {chosen}; leave it out")
    refuse_existing(options.to)  # before a large model is read
    FORMATS[chosen](options)
    return 0


def to_huggingface(options: Options) -> None:
    """A folder for AutoModelForCausalLM and AutoTokenizer, or an adapter for PEFT."""
    from gpt_model.dequantization import dequantize
    from gpt_model.huggingface_writing import SHARD_BYTES, save_huggingface
    from transformer_basics.quantized_linear import quantized_parts

    max_bytes = SHARD_BYTES
    if options.max_shard_size is not None:
        max_bytes = parse_bytes("max_shard_size", options.max_shard_size)
    if options.base is not None:
        export_adapter(options, options.base)
        return
    model, tokenizer, directory = load(options)
    if quantized_parts(model):
        dequantize(model)
        note(
            f"{directory} holds integers, and this layout has no place for them: the restored "
            "weights are written, as large as the original and as exact as the integers"
        )
    family = save_huggingface(
        model, options.to, tokenizer, max_shard_bytes=max_bytes, carried_from=directory
    )
    files = sorted(options.to.glob("*.safetensors"))
    print(f"source     {directory}")
    print(f"family     {family}, {str(model.dtype).removeprefix('torch.')}")
    size = sum(path.stat().st_size for path in files)
    print(f"weights    {size / 1e6:,.1f} MB in {len(files)} file{'s' if len(files) > 1 else ''}")
    print(f"saved      {options.to}")


def export_adapter(options: Options, base: Path) -> None:
    """A LoRA adapter of ours → one that PEFT puts on the exported base."""
    from finetuning.huggingface_adapter import export_adapter as translate
    from gpt_model.model_directory import find_model_directory, load_config

    for name in ("adapter", "dtype", "max_shard_size", "without_tokenizer"):
        if getattr(options, name) not in (None, False):
            option = name.replace("_", "-")
            raise ValueError(f"--{option} is of no use with --base, which exports an adapter alone")
    inner = options.directory / "adapter"  # where a run of `fromzero finetune` keeps it
    source = inner if inner.is_dir() else options.directory
    count = translate(source, options.to, load_config(find_model_directory(base)))
    print(f"source     {source}")
    print(f"adapter    {count} layers")
    print(f"saved      {options.to}")


def to_gguf(options: Options) -> None:
    """One file for llama.cpp and Ollama."""
    if options.without_tokenizer and options.pretokenizer is not None:
        raise ValueError("--pretokenizer is of no use with --without-tokenizer; give one of them")
    from gpt_model.gguf_export import STORED, export_gguf
    from transformer_basics.quantized_linear import quantized_parts

    model, tokenizer, _ = load(options)
    default = STORED if quantized_parts(model) else "f16"
    summary = export_gguf(
        model,
        options.to,
        tokenizer=tokenizer,
        weight_type=default if options.type is None else options.type,
        pretokenizer=options.pretokenizer,
        name=options.directory.resolve().name,
    )
    if options.type == STORED or (options.type is None and quantized_parts(model)):
        note(kept_integers(summary))
    report(summary, tokenizer, options.pretokenizer)


def load(options: Options) -> tuple[GPT, Tokenizer | None, Path]:
    """The model and its tokenizer; a directory that has none will do if none is wanted."""
    if holds_adapter(options.directory):
        remedy = "export the model it was trained on, with --adapter to merge the two"
        if options.format == "huggingface":
            remedy += "; or give that model with --base, to export the adapter alone"
        raise ValueError(f"{options.directory} is a LoRA adapter, not a model; {remedy}")
    dtype = "auto" if options.dtype is None else options.dtype
    if options.without_tokenizer:
        model, directory = open_weights(options.directory, "cpu", dtype, options.adapter)
        return model, None, directory
    return open_model(options.directory, "cpu", dtype, options.adapter)


def report(summary: GGUFSummary, tokenizer: Tokenizer | None, pretokenizer: str | None) -> None:
    """What was written, and on stderr what is not quite as asked or as trained."""
    notes = []
    if summary.fallbacks:
        names = ", ".join(summary.fallbacks[:3]) + (", …" if summary.fallbacks[3:] else "")
        notes.append(
            f"{len(summary.fallbacks)} tensors have rows that are no multiple of 32 and "
            f"are stored as f16: {names}"
        )
    if tokenizer is None:
        notes.append("no tokenizer: llama.cpp takes and gives token ids only")
    elif tokenizer.kind == "characters":
        notes.append(
            "llama.cpp drops or misreads characters that the vocabulary lacks, without a word"
        )
    elif pretokenizer is not None:
        notes.append(f"text is split as {pretokenizer!r} does; some token ids differ from training")
    for text in notes:
        note(text)
    size = f"{summary.n_bytes / 2**20:.1f} MiB"
    print(f"{summary.path}: {summary.architecture}, {summary.n_tensors} tensors, {size}")


def kept_integers(summary: GGUFSummary) -> str:
    """How many matrices are the model's own integers, bit for bit, and how many are not."""
    kinds = [(kind, summary.kinds.get(kind, 0)) for kind in ("q4_0", "q8_0")]
    kept = ", ".join(f"{count} as {kind}" for kind, count in kinds if count)
    others = summary.kinds.get("f16", 0)
    if not kept:
        return (
            f"no integers are kept, {others} tensors are restored to f16: llama.cpp wants groups "
            "of 32, 64, … that fill their rows, and no zero points"
        )
    rest = f"; {others} others as f16" if others else ""
    return f"the integers are kept bit for bit: {kept}{rest}"


def note(text: str) -> None:
    """One line on stderr that the user should know of."""
    print(f"note: {text}", file=sys.stderr)


# One writer per format; each says what its format cannot hold.
FORMATS: dict[str, Callable[[Options], None]] = {"huggingface": to_huggingface, "gguf": to_gguf}
