"""`fromzero train`：从纯文本到会写字的模型，一条命令。"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from foundation.checks import check_int
from foundation.files import write_json
from fromzero.arguments import parse_options
from fromzero.option_types import MaybeInt, MaybePath, MaybeText, free_directory, harmless
from fromzero.training_options import (
    OPTIONS_FILE,
    ModelOptions,
    TrainingOptions,
    load_options,
    options_as_json,
)
from training.hook_base import Hook

if TYPE_CHECKING:
    from gpt_model.config import GPTConfig
    from gpt_model.model import GPT
    from tokenization.tokenizer import Tokenizer
    from training.token_shard import TokenShard
    from training.train_config import TrainConfig
    from training.trainer import Trainer

INTERRUPTED = 130
PROMPT_TOKENS = 8


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train a model from plain text, and see it write.

    Without options it learns from Python's own documentation and library, which every machine
    has, for about as many minutes as --minutes says. Ctrl-C saves before it ends.

    Examples:
        fromzero train
        fromzero train --data my.txt --tokenizer characters --minutes 10
        fromzero train --data shakespeare.txt --recipe speedrun
        fromzero train --data "books/*.txt" --preset modern-mini --vocab-size 4096 --steps 2000
        fromzero train --n-layers 2 --dim 64 --overfit-one-batch --steps 200
        fromzero train --resume runs/gpt-micro
    """

    # what to learn from
    data: str = "python-docs+python-code"
    """names joined by +, or a file, folder or pattern of txt, md, py, jsonl"""
    validation: MaybeText = None
    """another corpus to validate on; without it a part of --data is held out"""
    val_fraction: float = 0.1
    """the share of the documents held out for validation"""
    errors: str = "strict"
    """what to do with bytes that are not UTF-8: strict or replace"""
    text_key: str = "text"
    """which key of a jsonl line holds the text"""
    tokenizer: str = "bpe"
    """bpe or characters (learned from the data), or the path of a tokenizer or model"""
    data_dir: Path = Path("data")
    """where tokenized corpora are kept for the next run"""

    # a whole set of choices
    recipe: MaybeText = None
    """model and training from training/recipes.py; every other option still changes it"""

    # which model
    preset: str = "gpt-micro"
    """a name from `fromzero models`"""
    config: MaybePath = None
    """a JSON file of configuration fields to change"""
    model: ModelOptions = ModelOptions()

    # where to
    out: MaybePath = None
    """the run directory; without it a new one in runs/"""
    overwrite: bool = False
    """replace the run that is already in --out"""
    resume: MaybePath = None
    """continue the run in this directory, with its own options"""
    allow_changes: bool = False
    """resume although options that decide the result have changed"""

    # how long, how
    training: TrainingOptions = TrainingOptions()
    minutes: float = 5.0
    """choose --steps so that training takes about this long here"""
    max_epochs: float = 8.0
    """but never see the data more often than this"""
    block_size: MaybeInt = None
    """tokens per sequence; without it the model's max_seq_len"""
    document_mask: bool = False
    """keep attention inside each document"""

    # looking and saving
    sample_every: MaybeInt = 500
    """steps between two samples"""
    prompt: tuple[str, ...] = ()
    """how the samples begin; without it as texts of the validation split do"""
    plot: bool = True
    """keep a loss.png in the run directory"""
    tensorboard: bool = False
    """also write TensorBoard files"""


class OptionsHook(Hook):
    """Keep the options in the run directory, once it is ours."""

    def __init__(self, options: Options) -> None:
        self.options = options

    def on_start(self, trainer: Trainer) -> None:
        """Write options.json, from which the run can be resumed."""
        if self.options.out is not None:
            write_json(self.options.out / OPTIONS_FILE, options_as_json(self.options))


def parse(arguments: Sequence[str], *, program: str) -> Options | None:
    """Read the options; an earlier run's or a recipe's are the defaults when one is named."""
    options = parse_options(Options, arguments, program=program)
    if options is None:
        return None
    if options.resume is not None:
        defaults = load_options(Options, options.resume)
    elif options.recipe is not None:
        defaults = recipe_options(options.recipe)
    else:
        return options
    return parse_options(Options, arguments, program=program, defaults=defaults)


def recipe_options(name: str) -> Options:
    """A recipe's choices as the defaults of the command line; it learns characters."""
    from training.recipes import recipe

    chosen = recipe(name)
    return Options(
        recipe=name,
        tokenizer="characters",
        preset=chosen.preset,
        model=ModelOptions(**chosen.model),
        training=TrainingOptions(**chosen.training),
    )


def run(options: Options) -> int:
    """Text → tokens → model → training → samples."""
    from training.run_directory import RunDirectory

    # ① everything that can be wrong is found before anything takes long
    training = options.training.to_config()
    config, tokenizer = choose_model(options)
    block_size = config.max_seq_len if options.block_size is None else options.block_size
    check_int("block_size", block_size, 1, config.max_seq_len)
    refuse_what_cannot_fit(options, config, training, block_size)
    resuming, overwrite = options.resume is not None, options.overwrite
    out = options.resume or options.out or free_directory(Path("runs"), options.preset)
    with RunDirectory(out).claimed(resume=resuming, overwrite=overwrite):
        pass
    # ② text → tokens, on disk
    train, val, tokenizer = prepare(options, config, tokenizer)
    config = config.replace(vocab_size=max(tokenizer.vocab_size, options.model.vocab_size or 0))
    # ③ how long; written down, so that a resumed run is the same run
    if options.training.steps is None:
        steps = choose_steps(options, config, training, block_size, train)
        training = training.replace(steps=steps)
    written = replace(options.training, steps=training.steps)
    options = replace(options, out=out, training=written, resume=None, overwrite=False)
    # ④ train
    trainer = build_trainer(options, config, training, block_size, (train, val), tokenizer)
    print(overview(options, trainer, config, block_size, (train, val), tokenizer), flush=True)
    result = trainer.fit(resume=resuming, overwrite=overwrite, allow_changes=options.allow_changes)
    if result.interrupted:
        print(f"to go on: fromzero train --resume {out}")
        return INTERRUPTED
    # ⑤ what has it learned?
    if not training.overfit_one_batch:
        report_and_sample(options, out, val)
    return 0


def choose_model(options: Options) -> tuple[GPTConfig, Tokenizer | None]:
    """The configuration, and the tokenizer if one is given; the data may still shrink the first."""
    from foundation.checks import check_choice
    from tokenization.tokenizer import Tokenizer
    from training.prepare import TOKENIZER_KINDS

    config = options.model.to_config(options.preset, options.config)
    if options.tokenizer in TOKENIZER_KINDS:
        return config, None
    if not Path(options.tokenizer).exists():
        check_choice("tokenizer", options.tokenizer, [*TOKENIZER_KINDS, "the path of a tokenizer"])
    tokenizer = Tokenizer.load(options.tokenizer)
    wanted = options.model.vocab_size
    if wanted is not None and wanted < tokenizer.vocab_size:
        raise ValueError(
            f"vocab_size must be >= {tokenizer.vocab_size}, the size of {options.tokenizer}; "
            f"got {wanted}"
        )
    return config.replace(vocab_size=wanted or tokenizer.vocab_size), tokenizer


def refuse_what_cannot_fit(
    options: Options, config: GPTConfig, training: TrainConfig, block_size: int
) -> None:
    """Estimate the memory before any work is done."""
    from foundation.devices import pick_device, resolve_precision
    from training.memory_advice import check_memory

    device = pick_device(training.device)
    warning = check_memory(
        config,
        batch_size=options.training.batch_size,
        seq_len=block_size,
        grad_accumulation=training.grad_accumulation,
        precision=resolve_precision(training.precision, device),
        device=device,
    )
    if warning:
        warnings.warn(warning, stacklevel=2)


def prepare(
    options: Options, config: GPTConfig, tokenizer: Tokenizer | None
) -> tuple[TokenShard, TokenShard, Tokenizer]:
    """Tokenize the corpus, or find the tokens of last time."""
    from rich.console import Console

    from tokenization.tokenizer import Tokenizer
    from training.prepare import prepare_data

    facts = [options.data, options.validation, options.tokenizer, config.vocab_size]
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:8]
    name = re.sub(r"[^\w+.-]+", "-", options.data).strip("-.")[-40:]
    directory = options.data_dir / f"{name}-{digest}"
    with Console(stderr=True).status(f"reading {options.data}, learning the tokenizer") as status:
        train, val = prepare_data(
            options.data,
            options.tokenizer if tokenizer is None else tokenizer,
            directory,
            vocab_size=config.vocab_size,
            validation=options.validation,
            val_fraction=options.val_fraction,
            errors=options.errors,
            text_key=options.text_key,
            progress=lambda n_bytes: status.update(f"tokenized {n_bytes / 1e6:.1f} MB"),
        )
    return train, val, Tokenizer.load(directory)


def choose_steps(
    options: Options, config: GPTConfig, training: TrainConfig, block_size: int, train: TokenShard
) -> int:
    """As many updates as fit into --minutes here, but no more than --max-epochs."""
    from evaluation.throughput import Workload, steps_in
    from foundation.checks import check_float
    from foundation.devices import pick_device

    check_float("max_epochs", options.max_epochs, exclusive_minimum=0.0)
    n_tokens = int(options.max_epochs * train.n_tokens)
    workload = Workload("", config, n_tokens, options.training.batch_size, block_size)
    device = pick_device(training.device)
    n_batches, speed = steps_in(options.minutes, workload, device, training.precision)
    return max(1, n_batches // training.grad_accumulation)


def build_trainer(
    options: Options,
    config: GPTConfig,
    training: TrainConfig,
    block_size: int,
    shards: tuple[TokenShard, TokenShard],
    tokenizer: Tokenizer,
) -> Trainer:
    """Put the pieces together; nothing is computed yet."""
    from foundation.devices import seed_everything
    from gpt_model.model import GPT
    from training.dataset import TokenBatches, sequential_batches
    from training.trainer import Trainer

    train, val = shards
    batch_size, masked = options.training.batch_size, options.document_mask
    seed_everything(training.seed)
    return Trainer(
        GPT(config),
        TokenBatches(train, batch_size, block_size, seed=training.seed, with_document_ids=masked),
        config=training,
        hooks=build_hooks(options, tokenizer, val),
        val_batches=lambda: sequential_batches(
            val, batch_size, block_size, with_document_ids=masked
        ),
        run_dir=options.out,
        tokenizer=tokenizer,
        bytes_per_token=val.bytes_per_token,
    )


def build_hooks(options: Options, tokenizer: Tokenizer, val: TokenShard) -> list[Hook]:
    """What is seen and kept while training."""
    from inference.generator import TextGenerator
    from inference.sampling import SamplingParams
    from training.hooks import SampleHook, TensorBoardHook, standard_hooks
    from training.loss_plot import PlotHook

    hooks = [hook for hook in standard_hooks() if options.plot or not isinstance(hook, PlotHook)]
    hooks.append(OptionsHook(options))
    if options.tensorboard:
        hooks.append(TensorBoardHook())
    if options.sample_every is not None and not options.training.overfit_one_batch:
        prompt = prompts(options, val, tokenizer)[0]
        params = SamplingParams(max_new_tokens=60, temperature=0.8, top_k=40, seed=0)

        def write(model: GPT) -> str:
            found = TextGenerator(model, tokenizer).generate([prompt], params)
            return prompt + harmless(found[0].text)

        hooks.append(SampleHook(write, options.sample_every))
    return hooks


def prompts(options: Options, val: TokenShard, tokenizer: Tokenizer) -> list[str]:
    """Beginnings to continue: the user's, or those of three texts the model has not seen."""
    if options.prompt:
        return list(options.prompt)
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
    shards: tuple[TokenShard, TokenShard],
    tokenizer: Tokenizer,
) -> str:
    """The run in a few lines, and one batch to look at."""
    from gpt_model.sizes import count_parameters, human, training_memory
    from training.diagnostics import look_at_batch

    train, val = shards
    training, batch_size = trainer.config, options.training.batch_size
    per_step = batch_size * training.grad_accumulation * block_size
    n_tokens = training.steps * per_step
    memory = training_memory(config, batch_size, block_size, precision=trainer.precision).total
    rows = {
        "data": f"{options.data}: {train.n_tokens:,} tokens to learn from, {val.n_tokens:,} to "
        "validate on",
        "tokenizer": f"{tokenizer.kind}, {tokenizer.vocab_size} tokens, "
        f"{train.bytes_per_token:.2f} bytes per token",
        "model": f"{options.preset}, {count_parameters(config).total:,} parameters",
        "memory": f"about {human(memory, 'B')}",
        "training": f"{training.steps:,} steps of {per_step:,} tokens: {human(n_tokens)} tokens, "
        f"{n_tokens / train.n_tokens:.1f} times the data; {trainer.device}, {trainer.precision}",
        "run": str(options.out),
    }
    lines = [f"{name:<11}{value}" for name, value in rows.items()]
    return "\n".join([*lines, "", look_at_batch(trainer.batches(0), tokenizer, rows=1), ""])


def report_and_sample(options: Options, out: Path, val: TokenShard) -> None:
    """Measure the best checkpoint on the whole validation split, and let it write."""
    from evaluation.perplexity import evaluate_shard
    from fromzero.option_types import open_generator
    from inference.sampling import SamplingParams

    generator, directory = open_generator(out, options.training.device)
    result = evaluate_shard(generator.model, val)
    print(f"best checkpoint {directory}, on all {val.n_tokens:,} held-out tokens:")
    print(f"  {result}")
    if options.plot:
        print(f"curves {out / 'loss.png'}")
    for number, prompt in enumerate(prompts(options, val, generator.tokenizer)):
        print(f"\n--- sample {number + 1}")
        params = SamplingParams(max_new_tokens=120, temperature=0.8, top_k=40, seed=number)
        sys.stdout.write(prompt)
        for piece in generator.stream(prompt, params):
            sys.stdout.write(harmless(piece))
            sys.stdout.flush()
        print()
    print(f'\ngo on: fromzero generate --model {out} --prompt "..."')
    print(f"       fromzero chat --model {out}")
