"""`fromzero models`：预设的总表；给一个名字或模型目录，就细看那一个。"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

if TYPE_CHECKING:
    from gpt_model.config import GPTConfig


@dataclass(frozen=True, kw_only=True)
class Options:
    """List the presets: parameters, FLOPs per token, memory to train and to run, KV cache.

    Examples:
        fromzero models
        fromzero models gpt2               (where its 124,439,808 parameters are)
        fromzero models runs/gpt-micro     (a model of your own)
    """

    name: Annotated[str | None, tyro.conf.Positional] = None
    """a preset, a model directory or a run directory to look at more closely"""


def run(options: Options) -> int:
    """Print the table, or one model's numbers."""
    from rich.console import Console

    from gpt_model.sizes import preset_table

    if options.name is not None:
        print(details(options.name))
        return 0
    table = preset_table()
    width = max(len(line) for line in table.splitlines())
    # A table wider than the terminal would be torn apart; piped text is nobody's terminal.
    if sys.stdout.isatty() and Console().width < width:
        print(narrow_table())
    else:
        print(table)
    return 0


def details(name: str) -> str:
    """One model: its configuration where it differs from the defaults, and where its size goes."""
    from gpt_model.config import PRESET_PURPOSES, PRESETS
    from gpt_model.memory import inference_memory, training_memory
    from gpt_model.sizes import count_parameters, flops_per_token, human, kv_bytes_per_token

    config = find_config(name)
    count = count_parameters(config)
    lines = [name if name not in PRESETS else f"{name}: {PRESET_PURPOSES[name]}", ""]
    lines += [f"  {key:<22}{value}" for key, value in config.to_dict().items() if value is not None]
    lines += ["", f"parameters            {count.total:>14,}"]
    for part, number in count.by_part().items():
        lines.append(f"  {part:<20}{number:>14,}  {number / count.total:6.1%}")
    lines += ["", f"FLOPs per token       {human(flops_per_token(config)):>14} to train"]
    lines.append(
        f"memory to run         {human(inference_memory(config).total, 'B'):>14} in 16 bits"
    )
    lines.append(f"KV cache per token    {human(kv_bytes_per_token(config), 'B'):>14} in 16 bits")
    memory = training_memory(config, 8)
    lines.append(f"memory to train       {human(memory.total, 'B'):>14} at batch 8, fp32")
    for part, number in memory.by_part().items():
        lines.append(f"  {part:<20}{human(number, 'B'):>14}  {number / memory.total:6.1%}")
    return "\n".join(lines)


def find_config(name: str) -> GPTConfig:
    """The configuration behind a preset's name, a directory or a config.json."""
    from pathlib import Path

    from gpt_model.config import PRESETS, preset
    from gpt_model.model_directory import find_model_directory, load_config

    if name not in PRESETS and Path(name).is_file():
        return load_config(Path(name))
    if name not in PRESETS and Path(name).exists():
        return load_config(find_model_directory(name))
    return preset(name)


def narrow_table() -> str:
    """The columns that matter most, for a terminal of eighty columns."""
    from gpt_model.config import PRESETS
    from gpt_model.memory import training_memory
    from gpt_model.sizes import count_parameters, flops_per_token, human

    header = ("name", "layers×dim×heads", "context", "vocab", "parameters", "FLOPs", "train")
    rows = [header]
    for name, config in PRESETS.items():
        shape = f"{config.n_layers}×{config.dim}×{config.n_heads}"
        size = f"{count_parameters(config).total:,}"
        memory = human(training_memory(config, 8).total, "B")
        context, vocabulary = str(config.max_seq_len), str(config.vocab_size)
        flops = human(flops_per_token(config))
        rows.append((name, shape, context, vocabulary, size, flops, memory))
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    note = (
        "FLOPs per token and memory to train (batch 8, fp32, Adam); all columns: a wider terminal"
    )
    return "\n".join([*lines, note])
