"""`fromzero train` 说的话：开始之前的概览，结束之后的样例。"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fromzero.option_types import harmless

if TYPE_CHECKING:
    from fromzero.train import Options
    from fromzero.train_data import TrainingData
    from gpt_model.config import GPTConfig
    from training.trainer import Trainer

__all__ = ["overview", "prompts", "report_and_sample"]

PROMPT_TOKENS = 8


def prompts(options: Options, data: TrainingData) -> list[str]:
    """Beginnings to continue: the user's, or those of three texts the model has not seen."""
    if options.prompt:
        return list(options.prompt)
    val, tokenizer = data.sources[0].val, data.tokenizer
    starts: list[int] = val.document_starts.tolist()
    if len(starts) < 4:
        starts = [val.n_tokens * part // 4 for part in range(4)]
    found = []
    for start in (starts[len(starts) * part // 4] for part in (1, 2, 3)):
        ids = val.tokens[start : start + PROMPT_TOKENS].tolist()
        found.append(tokenizer.decode(ids, skip_special=True).rstrip("\ufffd"))
    return [text for text in found if text.strip()] or ["\n"]


def overview(
    options: Options,
    trainer: Trainer,
    config: GPTConfig,
    block_size: int,
    data: TrainingData,
) -> str:
    """The run in a few lines, and one batch to look at."""
    from gpt_model.sizes import count_parameters, human
    from training.diagnostics import look_at_batch
    from training.memory_advice import Plan, memory_needed
    from training.mixture import MixedBatches

    tokenizer = data.tokenizer
    training, batch_size = trainer.config, options.training.batch_size
    per_step = batch_size * training.grad_accumulation * block_size
    n_tokens = training.steps * per_step
    plan = Plan(
        batch_size=batch_size,
        grad_accumulation=training.grad_accumulation,
        seq_len=block_size,
        precision=trainer.precision,
        checkpointing=training.gradient_checkpointing,
        parallel=training.parallel,
        processes=trainer.processes.size,
        optimizer=training.optimizer,
    )
    memory = memory_needed(config, plan, device=trainer.device.type)
    rows = {
        "data": f"{options.data}: {data.n_tokens:,} tokens to learn from, {data.n_val_tokens:,} "
        "to validate on",
        "tokenizer": f"{tokenizer.kind}, {tokenizer.vocab_size} tokens, "
        f"{data.bytes_per_token:.2f} bytes per token",
        "model": f"{options.preset}, {count_parameters(config).total:,} parameters",
        "memory": f"about {human(memory, 'B')}",
        "training": f"{training.steps:,} steps of {per_step:,} tokens: {human(n_tokens)} tokens, "
        f"{n_tokens / data.n_tokens:.1f} times the data; {trainer.device}, {trainer.precision}",
        "run": str(options.out),
    }
    if options.depth is not None:
        rows["model"] = f"depth {options.depth}: " + rows["model"].partition(", ")[2]
        rows["model"] += f", {config.dim} wide, {config.n_heads} heads, context {block_size}"
        rows["training"] += f", learning rate {training.learning_rate:.4f}"
    if isinstance(trainer.batches, MixedBatches):
        passes = trainer.batches.passes(training.steps * training.grad_accumulation)
        rows["mixture"] = ", ".join(
            f"{source.name} {unit / 1e6:.1%} ({times:.1f} times)"
            for source, unit, times in zip(data.sources, trainer.batches.units, passes, strict=True)
        )
    lines = [f"{name:<11}{value}" for name, value in rows.items()]
    return "\n".join([*lines, "", look_at_batch(trainer.batches(0), tokenizer, rows=1), ""])


def report_and_sample(options: Options, out: Path, data: TrainingData) -> None:
    """Measure the best checkpoint on the whole validation split, and let it write."""
    from evaluation.perplexity import evaluate_shard
    from fromzero.option_types import open_generator
    from inference.sampling import SamplingParams

    generator, directory = open_generator(out, options.training.device)
    for source in data.sources:
        of = f" of {source.name}" if len(data.sources) > 1 else ""
        print(f"best checkpoint {directory}, on all {source.val.n_tokens:,} held-out tokens{of}:")
        print(f"  {evaluate_shard(generator.model, source.val)}")
    if options.plot:
        print(f"curves {out / 'loss.png'}")
    for number, prompt in enumerate(prompts(options, data)):
        print(f"\n--- sample {number + 1}")
        params = SamplingParams(max_new_tokens=120, temperature=0.8, top_k=40, seed=number)
        sys.stdout.write(prompt)
        for piece in generator.stream(prompt, params):
            sys.stdout.write(harmless(piece))
            sys.stdout.flush()
        print()
    print(f'\ngo on: fromzero generate --model {out} --prompt "..."')
    print(f"       fromzero chat --model {out}")
