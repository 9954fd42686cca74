"""`fromzero plan`：花钱之前，先知道要多少显存、几天、多少钱、练得多好。"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from fromzero.models import find_config
from fromzero.option_types import (
    MaybeFloat,
    MaybeInt,
    MaybeText,
    parse_bytes,
    parse_tokens,
)

if TYPE_CHECKING:
    from training.run_plan import RunPlan

# What an option of this command is called in a training plan, where the names differ
FLAGS = {"processes": "gpus"}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Before renting GPUs: memory by part, time, cost, expected loss, and what to change.

    Everything comes from formulas (see training/run_plan.py); nothing is run.
    A plan that does not fit is an answer, not an error: the exit code is 0, and with --json
    "fits" is false.

    Examples:
        fromzero plan --model gpt2-xl --gpus 8 --gpu-memory 80GB --tokens 10e9
        fromzero plan --model gpt2 --gpu rtx4090 --tokens 2.5B --checkpointing selective
        fromzero plan --model my-config.json --tokens 300M --json
    """

    model: str = "gpt2"
    """a preset (see `fromzero models`), a model or run directory, or a config.json"""
    tokens: str = "20x"
    """how many tokens to train on, such as 10e9, 300M or 10B; 20x is twenty per parameter"""
    gpus: int = 1
    """how many GPUs, each with one process"""
    gpu: str = "a100"
    """whose peak and memory: a100, h100, h200, l40s, l4, rtx4090 or rtx3090"""
    gpu_memory: MaybeText = None
    """memory of each GPU, such as 80GB (1000³) or 24GiB (1024³); without it, that of --gpu"""
    tflops: MaybeFloat = None
    """peak of each GPU in 10¹² operations per second; without it, the published one of --gpu"""
    efficiency: float = 0.4
    """the share of the peak that is reached; measure yours with a short run"""
    batch_size: int = 8
    """sequences that each GPU computes at once"""
    grad_accumulation: MaybeInt = None
    """batches of all GPUs together before an update; without it, one of each GPU"""
    seq_len: MaybeInt = None
    """tokens per sequence; without it, the model's context"""
    precision: str = "bf16"
    """fp32, bf16 or fp16"""
    checkpointing: str = "none"
    """none, selective or block: less memory for more time, the same result"""
    parallel: MaybeText = None
    """with several GPUs: ddp (a whole model on each, the default) or fsdp (a part on each)"""
    optimizer: str = "adamw"
    """adamw or muon"""
    price_per_hour: MaybeFloat = None
    """the price of one GPU for one hour, in any currency"""
    json: bool = False
    """print every figure as JSON"""


def run(options: Options) -> int:
    """Print the plan."""
    plan = build(options)
    print(json.dumps(as_dict(plan), indent=2) if options.json else as_text(plan))
    return 0


def build(options: Options) -> RunPlan:
    """The plan that the options describe; every value is checked."""
    from foundation.checks import check_choice, check_float
    from gpt_model.sizes import count_parameters
    from training.memory_advice import Plan
    from training.run_plan import GPUS, RunPlan

    config = find_config(options.model)
    gpu = GPUS[check_choice("gpu", options.gpu, GPUS)]
    accumulation, memory, peak = options.grad_accumulation, options.gpu_memory, options.tflops
    if peak is not None:
        peak = check_float("tflops", peak, exclusive_minimum=0) * 1e12
    return RunPlan(
        config=config,
        plan=Plan(
            batch_size=options.batch_size,
            grad_accumulation=options.gpus if accumulation is None else accumulation,
            seq_len=config.max_seq_len if options.seq_len is None else options.seq_len,
            precision=options.precision,
            checkpointing=options.checkpointing,
            parallel=options.parallel or ("ddp" if options.gpus > 1 else "none"),
            processes=options.gpus,
            optimizer=options.optimizer,
        ),
        tokens=parse_tokens("tokens", options.tokens, count_parameters(config).total),
        gpu_memory=gpu.memory if memory is None else parse_bytes("gpu_memory", memory),
        flops_per_second=gpu.peak(options.precision) if peak is None else peak,
        efficiency=options.efficiency,
        price_per_hour=options.price_per_hour,
    )


def flags(plan: RunPlan, old: RunPlan) -> str:
    """What to add to the command line to get from one plan to another."""
    from gpt_model.config import PRESETS

    words = {FLAGS.get(name, name): value for name, value in plan.plan.changes(old.plan).items()}
    if plan.config != old.config:
        words["model"] = next(name for name, config in PRESETS.items() if config == plan.config)
    return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in words.items())


def as_dict(run: RunPlan) -> dict[str, Any]:
    """Every figure, for a program."""
    from gpt_model.sizes import count_parameters
    from training.scaling_law import LAWS

    def short(plan: RunPlan) -> dict[str, Any]:
        figures = {"memory": plan.memory.total, "seconds": plan.seconds, "cost": plan.cost}
        return {**figures, "fits": plan.memory.total <= plan.gpu_memory}

    losses = {}
    for name, law in LAWS.items():
        n, d = run.best_split(law)
        best = {"parameters": n, "tokens": d, "loss": law.loss(n, d)}
        losses[name] = {"loss": run.expected_loss(law), "best_split": best}
    return {
        "parameters": count_parameters(run.config).total,
        "tokens": run.tokens,
        "setup": {field.name: getattr(run.plan, field.name) for field in fields(run.plan)},
        "gpu_memory": run.gpu_memory,
        "memory": {**run.memory.by_part(), "total": run.memory.total},
        "fits": run.memory.total <= run.gpu_memory,
        "verdict": run.verdict,
        "steps": run.steps,
        "flops": run.flops,
        "mfu": run.mfu,
        "seconds": run.seconds,
        "gpu_hours": run.gpu_hours,
        "cost": run.cost,
        "expected_loss": losses,
        "alternatives": [
            {"checkpointing": a.plan.checkpointing, "parallel": a.plan.parallel, **short(a)}
            for a in run.alternatives()
        ],
        "advice": [{"change": flags(a, run), **short(a)} for a in advice(run)],
    }


def advice(run: RunPlan) -> list[RunPlan]:
    """What to change, only where something must be."""
    return [] if run.verdict == "fits" else run.advice()


def as_text(run: RunPlan) -> str:
    """The plan on one page."""
    from evaluation.checkup import minutes_text
    from gpt_model.sizes import count_parameters, human
    from training.scaling_law import LAWS

    n = count_parameters(run.config).total
    gpus, room = run.plan.processes, human(run.gpu_memory, "B")
    lines = [f"{n:,} parameters, {count(run.tokens)} tokens ({run.tokens / n:.3g} per parameter)"]
    share = run.memory.total / run.gpu_memory
    lines += [
        "",
        f"memory of each GPU    {human(run.memory.total, 'B'):>10}  {share:.0%} of {room}: ",
    ]
    lines[-1] += run.verdict
    for part, size in run.memory.by_part().items():
        lines.append(f"  {part:<20}{human(size, 'B'):>10}  {size / run.memory.total:6.1%}")
    speed = f"{gpus} × {human(run.flops_per_second)}FLOPS × {run.efficiency:.0%}"
    lines += ["", f"time                  {minutes_text(run.seconds):>10}  {run.flops:.3g} FLOPs"]
    lines[-1] += f" at {speed}; MFU {run.mfu:.1%}"
    lines.append(f"  updates             {run.steps:>10,}  of {run.tokens_per_step:,} tokens")
    lines[-1] += f"; {count(run.tokens / run.seconds)} tokens/s"
    cost = "" if run.cost is None else f"; cost {run.cost:,.2f}"
    lines.append(f"  GPU hours           {run.gpu_hours:>10,.1f}{cost}")
    lines += ["", "expected loss, in nats per token of the fitted corpora (not yours):"]
    for name, law in LAWS.items():
        best = run.best_split(law)
        lines.append(f"  {name:<20}{run.expected_loss(law):>10.3f}  {law.loss(*best):.3f} with")
        lines[-1] += f" {count(best[0])} parameters, {count(best[1])} tokens for the same compute"
    lines += ["", alternatives_table(run)]
    if run.verdict != "fits":
        lines += ["", "what would fit:"]
        found = {flags(a, run): cells(a) for a in run.advice()}
        lines += [f"  {words:<{max(map(len, found))}}  {told}" for words, told in found.items()]
        lines += [] if found else ["  nothing that is known here; train adapters only (LoRA)"]
    return "\n".join(lines)


def count(number: float) -> str:
    """A number of things in few letters: people say 10B tokens, not 10G."""
    from gpt_model.sizes import human

    return human(number).replace("G", "B")


def cells(run: RunPlan) -> str:
    """Memory, time and cost of a plan, in few words."""
    from evaluation.checkup import minutes_text
    from gpt_model.sizes import human

    cost = "" if run.cost is None else f", cost {run.cost:,.2f}"
    return f"{human(run.memory.total, 'B')}, {minutes_text(run.seconds)}{cost}"


def alternatives_table(run: RunPlan) -> str:
    """Checkpointing × parallelism: memory for time."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from evaluation.checkup import minutes_text
    from gpt_model.sizes import human

    table = Table(box=box.SIMPLE, padding=(0, 1), pad_edge=False)
    for heading in ("parallel", "checkpointing"):
        table.add_column(heading, no_wrap=True)
    for heading in ("states", "activations", "logits", "working", "total", "time"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("fits", no_wrap=True)
    for other in run.alternatives():
        memory = other.memory
        states = memory.weights + memory.gradients + memory.optimizer
        parts = (states, memory.activations, memory.logits, memory.working, memory.total)
        told = [other.plan.parallel, other.plan.checkpointing]
        told += [human(size, "B") for size in parts]
        short = {"fits": "yes", "tight": "barely", "does not fit": "no"}[other.verdict]
        table.add_row(*told, minutes_text(other.seconds), short)
    text = io.StringIO()
    Console(width=100, file=text, color_system=None).print(table)
    lines = [line.rstrip() for line in text.getvalue().splitlines()]
    return "\n".join(line for line in lines if line)
