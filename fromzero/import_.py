"""`fromzero import`：把 Hugging Face 的检查点变成我们的模型目录。"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from fromzero.option_types import MaybePath, MaybeText, free_directory

if TYPE_CHECKING:
    from gpt_model.model import GPT
    from tokenization.tokenizer import Tokenizer


WITHOUT = (
    "save it with transformers' AutoTokenizer first, or give --without-tokenizer to import the "
    "weights alone"
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Turn a Hugging Face checkpoint into a model directory.

    GPT-2, Llama 2 to 3.2, Mistral, Qwen2, Qwen2.5 and Qwen3 (dense), in safetensors. A name that
    is no folder here is downloaded; HF_ENDPOINT names a mirror, HF_TOKEN opens gated models. A
    LoRA adapter of PEFT is imported with --base, the model it was trained on.

    Examples:
        fromzero import gpt2
        fromzero import Qwen/Qwen3-0.6B --out runs/qwen3
        fromzero import ./Llama-3.2-1B --out runs/llama
        fromzero import gpt2 --revision main
        fromzero import ./their-adapter --base runs/llama --out runs/adapter
    """

    source: Annotated[str, tyro.conf.Positional]
    """a folder with config.json and safetensors, or a name on the hub"""
    out: MaybePath = None
    """the model directory to write; without it runs/NAME"""
    revision: MaybeText = None
    """a branch, tag or commit of the hub's repository; without it the newest"""
    base: MaybePath = None
    """the source is a LoRA adapter for this model directory"""
    without_tokenizer: bool = False
    """import the weights alone; the model is then fed with token ids"""


def run(options: Options) -> int:
    """A folder or a name → a model directory, or an adapter directory."""
    from gpt_model.huggingface_files import import_huggingface, refuse_existing

    if options.base is not None and options.without_tokenizer:
        raise ValueError(
            "--without-tokenizer is of no use with --base: an adapter has no tokenizer"
        )
    out = options.out or free_directory(Path("runs"), Path(options.source).name or "imported")
    refuse_existing(out)  # before gigabytes are downloaded
    folder = find(options)
    if options.base is not None or (folder / "adapter_config.json").is_file():
        return import_adapter(options, folder, out)
    tokenizer = None if options.without_tokenizer else load_tokenizer(folder)
    model = import_huggingface(folder, out, tokenizer)
    report(model, tokenizer, folder, out)
    return 0


def find(options: Options) -> Path:
    """The folder that was meant: one that is here, or one that is downloaded."""
    from foundation.hub import ADAPTER, download_checkpoint, is_hub_name
    from gpt_model.huggingface_config import config_from_huggingface
    from gpt_model.huggingface_files import read_huggingface_config
    from tokenization.tokenizer import FILE_NAME

    source, revision = options.source, options.revision
    folder = Path(source).expanduser()
    if folder.exists():
        if revision is not None:
            raise ValueError(f"{folder} is a folder on this machine; --revision is for the hub")
        return folder
    if not is_hub_name(source):
        raise ValueError(
            f"{source} does not exist; give a folder, or a name on the hub: OWNER/NAME"
        )

    def check_files(names: Sequence[str]) -> None:
        needed = not options.without_tokenizer and ADAPTER not in names
        if needed and FILE_NAME not in names:
            raise ValueError(f"{source} has no {FILE_NAME}: {WITHOUT}")

    print(f"downloading {source}", file=sys.stderr)
    return download_checkpoint(
        source,
        revision,
        check_config=lambda here: config_from_huggingface(read_huggingface_config(here)),
        check_files=check_files,
    )


def load_tokenizer(folder: Path) -> Tokenizer:
    """The folder's tokenizer.json."""
    from tokenization.tokenizer import FILE_NAME, Tokenizer

    if folder.is_dir() and not (folder / FILE_NAME).is_file():
        # what is missing from the folder of a model is said first
        from gpt_model.huggingface_files import read_huggingface_config

        read_huggingface_config(folder)
        raise ValueError(f"{folder} has no {FILE_NAME}: {WITHOUT}")
    return Tokenizer.load(folder)


def report(model: GPT, tokenizer: Tokenizer | None, source: Path, out: Path) -> None:
    """What has been imported, and what to do with it."""
    config = model.config
    dtype = str(model.dtype).removeprefix("torch.")
    print(f"source     {source}")
    print(f"model      {sum(p.numel() for p in model.parameters()):,} parameters, {dtype}")
    print(f"shape      {config.n_layers} layers, dim {config.dim}, {config.n_heads} heads")
    print(f"context    {config.max_seq_len} tokens")
    if tokenizer is not None:
        print(f"tokenizer  {tokenizer.kind}, {tokenizer.vocab_size:,} tokens")
    print(f"saved      {out}")
    if tokenizer is not None:
        print(f"go on: fromzero generate --model {out} --prompt ...")


def import_adapter(options: Options, folder: Path, out: Path) -> int:
    """A PEFT adapter for the checkpoint of theirs → one for our model."""
    from finetuning.huggingface_adapter import import_adapter as translate
    from gpt_model.model_directory import find_model_directory, load_config

    if options.base is None:
        raise ValueError(
            f"{folder} is a LoRA adapter; give the model directory it belongs to with --base"
        )
    config = load_config(find_model_directory(options.base))
    count = translate(folder, out, config)
    print(f"source     {folder}")
    print(f"adapter    {count} layers")
    print(f"saved      {out}")
    print(f"go on: fromzero generate --model {options.base} --adapter {out} --prompt ...")
    return 0
