"""`fromzero train`：从纯文本到会写字的模型，一条命令。"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundation.checks import check_int
from foundation.files import write_json
from fromzero.arguments import given_names, parse_options
from fromzero.option_types import (
    MaybeInt,
    MaybePath,
    MaybeText,
    free_directory,
    given_tokenizer,
    harmless,
)
from fromzero.starting_points import chosen_recipe, keep_shares, settle, starting_point
from fromzero.train_data import TrainingData, prepare
from fromzero.train_report import overview, prompts, report_and_sample
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
    from training.distributed import Processes
    from training.train_config import TrainConfig
    from training.trainer import Trainer

INTERRUPTED = 130
RUNS = Path("runs")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train a model from plain text, and see it write.

    Without options it learns from Python's own documentation and library, which every machine
    has, for about as many minutes as --minutes says. Ctrl-C saves before it ends.

    Examples:
        fromzero train
        fromzero train --data my.txt --tokenizer characters --minutes 10
        fromzero train --data books.txt@0.7+python-code@0.3
        fromzero train --data shakespeare.txt --recipe speedrun
        fromzero train --depth 2
        fromzero train --data "books/*.txt" --preset modern-mini --vocab-size 4096 --steps 2000
        fromzero train --n-layers 2 --dim 64 --overfit-one-batch --steps 200
        fromzero train --resume runs/gpt-micro
        torchrun --nproc-per-node 2 -m fromzero train --parallel ddp --grad-accumulation 2
    """

    # what to learn from
    data: str = "python-docs+python-code"
    """names joined by +; a file, folder or pattern of txt, md, py, jsonl, parquet; hf:NAME; a
    directory of `fromzero data prepare`; or several with weights: a.txt@0.7+b.jsonl@0.3"""
    validation: MaybeText = None
    """another corpus to validate on; without it a part of --data is held out"""
    val_fraction: float = 0.1
    """the share of the documents held out for validation"""
    errors: str = "strict"
    """what to do with bytes that are not UTF-8: strict or replace"""
    text_key: str = "text"
    """which key of a jsonl line holds the text"""
    tokenizer: str = "bpe"
    """bpe or characters (learned from the data), bpe:llama-bpe, bpe:qwen2 or another split that
    llama.cpp knows (to export to it later), or the path of a tokenizer or model"""
    data_dir: Path = Path("data")
    """where tokenized corpora are kept for the next run"""

    # a whole set of choices
    recipe: MaybeText = None
    """model and training from training/recipes.py; every other option still changes it"""
    depth: MaybeInt = None
    """one dial: this many layers, and all the rest derived from it (training/depth_dial.py)"""

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
    track: str = "auto"
    """where curves go too: auto (TensorBoard if it is installed), none, or names joined by commas:
    tensorboard, wandb, swanlab, mlflow"""


class OptionsHook(Hook):
    """Keep the options in the run directory, once it is ours."""

    def __init__(self, options: Any) -> None:
        self.options = options  # of train or of finetune: anything with an `out`

    def on_start(self, trainer: Trainer) -> None:
        """Write options.json, from which the run can be resumed."""
        if self.options.out is not None:
            write_json(self.options.out / OPTIONS_FILE, options_as_json(self.options))


def parse(arguments: Sequence[str], *, program: str) -> Options | None:
    """Read the options; an earlier run's, a depth's or a recipe's are the defaults."""
    options = parse_options(Options, arguments, program=program)
    if options is None:
        return None
    given = given_names(arguments)
    defaults = starting_point(options, given)
    if defaults is None:
        return options
    changed = parse_options(Options, arguments, program=program, defaults=defaults)
    assert changed is not None
    return settle(changed, given)


def run(options: Options) -> int:
    """Text → tokens → model → training → samples."""
    from training.distributed import connect
    from training.run_directory import RunDirectory
    from training.trackers import make_trackers

    # ① everything that can be wrong is found before anything takes long
    processes = connect(options.training.parallel)
    options = place(options, processes)
    training = options.training.to_config()
    make_trackers(options.track)  # unknown, or not installed
    config, tokenizer = choose_model(options)
    block_size = config.max_seq_len if options.block_size is None else options.block_size
    check_int("block_size", block_size, 1, config.max_seq_len)
    processes.check_divides(training.grad_accumulation)
    warning = refuse_what_cannot_fit(options, config, training, block_size, processes.size)
    if warning and processes.is_main:
        warnings.warn(warning, stacklevel=1)
    resuming, overwrite = options.resume is not None, options.overwrite
    out = options.resume or options.out
    assert out is not None
    processes.on_main(lambda: RunDirectory(out).check(resume=resuming, overwrite=overwrite))
    # ② text → tokens, on disk; the first process makes them, the others find them there
    made: list[TrainingData] = []
    processes.on_main(lambda: made.append(prepare(options, config, tokenizer)))
    data = made[0] if made else prepare(options, config, tokenizer, quiet=True)
    tokenizer = data.tokenizer
    config = config.replace(vocab_size=max(tokenizer.vocab_size, options.model.vocab_size or 0))
    # ③ how long; written down, so that a resumed run is the same run
    if options.training.steps is None:
        steps = choose_steps(options, config, training, block_size, data, processes.size)
        steps = processes.broadcast(steps)
        if (chosen := chosen_recipe(options)) is not None:
            options = replace(options, training=keep_shares(options.training, steps, chosen))
            training = options.training.to_config()
        training = training.replace(steps=steps)
    elif options.depth is not None and processes.is_main:
        warn_of_little_data(options, training, block_size, data)
    written = replace(options.training, steps=training.steps)
    options = replace(options, out=out, training=written, resume=None, overwrite=False)
    # ④ train
    trainer = build_trainer(options, config, training, block_size, data)
    if processes.is_main:
        print(overview(options, trainer, config, block_size, data), flush=True)
    result = trainer.fit(resume=resuming, overwrite=overwrite, allow_changes=options.allow_changes)
    if result.interrupted:
        if processes.is_main:
            print(f"to go on: fromzero train --resume {out}", flush=True)
        return INTERRUPTED
    # ⑤ what has it learned?
    if processes.is_main and not training.overfit_one_batch:
        report_and_sample(options, out, data)
    return 0


def place(options: Options, processes: Processes) -> Options:
    """Decide where the run goes; all processes agree on it.

    When torchrun starts us again after a process has died, the run that we had begun goes on.
    """
    from training.checkpoint_list import list_checkpoints
    from training.restart import earlier_attempt

    if options.resume is not None:
        return options
    begun = earlier_attempt(options.out or RUNS, processes)
    if begun is not None and processes.broadcast(bool(list_checkpoints(begun))):
        if processes.is_main:
            print(f"restarted by torchrun: going on from the checkpoints in {begun}", flush=True)
        return replace(load_options(Options, begun), resume=begun)
    out = begun or options.out
    if out is None:
        out = Path(processes.broadcast(str(free_directory(RUNS, run_name(options)))))
    return replace(options, out=out)


def run_name(options: Options) -> str:
    """What a run is called in runs/: after what decided its size."""
    return options.recipe or (f"depth-{options.depth}" if options.depth else options.preset)


def choose_model(options: Options) -> tuple[GPTConfig, Tokenizer | None]:
    """The configuration, and the tokenizer if one is given; the data may still shrink the first."""
    config = options.model.to_config(options.preset, options.config)
    tokenizer = given_tokenizer(options.tokenizer)
    if tokenizer is None:
        return config, None
    wanted = options.model.vocab_size
    if wanted is not None and wanted < tokenizer.vocab_size:
        raise ValueError(
            f"vocab_size must be >= {tokenizer.vocab_size}, the size of {options.tokenizer}; "
            f"got {wanted}"
        )
    return config.replace(vocab_size=wanted or tokenizer.vocab_size), tokenizer


def refuse_what_cannot_fit(
    options: Options, config: GPTConfig, training: TrainConfig, block_size: int, n_processes: int
) -> str | None:
    """Estimate the memory before any work is done; return what to warn of."""
    from foundation.devices import pick_device, resolve_precision
    from training.memory_advice import check_memory

    device = pick_device(training.device)
    return check_memory(
        config,
        batch_size=options.training.batch_size,
        seq_len=block_size,
        grad_accumulation=training.grad_accumulation,
        precision=resolve_precision(training.precision, device),
        checkpointing=training.gradient_checkpointing,
        parallel=training.parallel,
        processes=n_processes,
        optimizer=training.optimizer,
        device=device,
    )


def choose_steps(
    options: Options,
    config: GPTConfig,
    training: TrainConfig,
    block_size: int,
    data: TrainingData,
    n_processes: int = 1,
) -> int:
    """As many updates as fit into --minutes here, but no more than --max-epochs.

    Measured in each process at the same time, so that they share the machine as in training.
    """
    from evaluation.throughput import Workload, steps_in
    from foundation.checks import check_float
    from foundation.devices import pick_device

    check_float("max_epochs", options.max_epochs, exclusive_minimum=0.0)
    n_tokens = int(options.max_epochs * data.n_tokens)
    workload = Workload("", config, n_tokens, options.training.batch_size, block_size)
    device = pick_device(training.device)
    n_batches, _ = steps_in(n_processes * options.minutes, workload, device, training.precision)
    return max(1, n_batches // training.grad_accumulation)


def warn_of_little_data(
    options: Options, training: TrainConfig, block_size: int, data: TrainingData
) -> None:
    """A depth asks for tokens whether they are there or not; say so when they are not."""
    per_step = options.training.batch_size * training.grad_accumulation * block_size
    epochs = training.steps * per_step / data.n_tokens
    if epochs > options.max_epochs:
        warnings.warn(
            f"depth {options.depth} sees the {data.n_tokens:,} tokens of {options.data} "
            f"{epochs:.1f} times, more than --max-epochs {options.max_epochs:g}: give more data, "
            "a smaller --depth or fewer --steps",
            stacklevel=1,
        )


def build_trainer(
    options: Options,
    config: GPTConfig,
    training: TrainConfig,
    block_size: int,
    data: TrainingData,
) -> Trainer:
    """Put the pieces together; nothing is computed yet."""
    from foundation.devices import seed_everything
    from gpt_model.model import GPT
    from training.trainer import Trainer

    batch_size, masked = options.training.batch_size, options.document_mask
    seed_everything(training.seed)
    return Trainer(
        GPT(config),
        data.batches(batch_size, block_size, seed=training.seed, with_document_ids=masked),
        config=training,
        hooks=build_hooks(options, data),
        val_batches=lambda: data.val_batches(batch_size, block_size, with_document_ids=masked),
        run_dir=options.out,
        tokenizer=data.tokenizer,
        bytes_per_token=data.val_bytes_per_token,
    )


def build_hooks(options: Options, data: TrainingData) -> list[Hook]:
    """What is seen and kept while training."""
    from inference.generator import TextGenerator
    from inference.sampling import SamplingParams
    from training.hooks import SampleHook, TrackingHook, standard_hooks
    from training.loss_plot import PlotHook
    from training.trackers import make_trackers

    hooks = [hook for hook in standard_hooks() if options.plot or not isinstance(hook, PlotHook)]
    hooks.append(OptionsHook(options))
    if trackers := make_trackers(options.track):
        hooks.append(TrackingHook(trackers, config=options_as_json(options)))
    if options.sample_every is not None and not options.training.overfit_one_batch:
        prompt = prompts(options, data)[0]
        params = SamplingParams(max_new_tokens=60, temperature=0.8, top_k=40, seed=0)

        def write(model: GPT) -> str:
            found = TextGenerator(model, data.tokenizer).generate([prompt], params)
            return prompt + harmless(found[0].text)

        hooks.append(SampleHook(write, options.sample_every))
    return hooks
