"""`fromzero finetune`：用对话教一个模型新任务；全量、LoRA 或 QLoRA。"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from foundation.checks import check_int
from fromzero.arguments import parse_options
from fromzero.finetune_result import FreshResult, check_places, keep_best, show_answers
from fromzero.option_types import (
    MaybeInt,
    MaybePath,
    MaybeText,
    free_directory,
    harmless,
    newest_run,
    open_model,
)
from fromzero.training_options import TrainingOptions, load_options, options_as_json

if TYPE_CHECKING:
    from finetuning.lora_config import LoRAConfig
    from finetuning.packing import ConversationBatches
    from finetuning.sft import Encoded, Spoken
    from gpt_model.model import GPT
    from tokenization.tokenizer import Tokenizer
    from training.hook_base import Hook
    from training.train_config import TrainConfig
    from training.trainer import Trainer

INTERRUPTED = 130
METHODS = ("lora", "qlora", "full")


@dataclass(frozen=True, kw_only=True)
class LoRAOptions:
    """The adapter; the fields are those of LoRAConfig."""

    r: int = 8
    """the rank: how thin the two trained matrices are"""
    alpha: float = 16.0
    """the change is scaled by alpha / r"""
    dropout: float = 0.0
    """the share of the adapter's inputs dropped in training"""
    target: tuple[str, ...] = ("q_proj", "v_proj", "up_proj", "down_proj")
    """names or patterns of the Linear layers that get an adapter"""
    use_rslora: bool = False
    """scale by alpha / sqrt(r) instead"""
    use_dora: bool = False
    """train the length of every output too (DoRA)"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Teach a model a new task, with LoRA: only a few percent of the parameters are trained.

    The task is a json or jsonl file of conversations: messages, ShareGPT, Alpaca or prompt and
    response; only what the assistant says counts in the loss. Without --data it is: a Python
    function, and the first line of its docstring. The adapter is saved in PEFT's layout.

    Examples:
        fromzero finetune
        fromzero finetune --data pairs.jsonl --model runs/gpt-micro --out runs/my-adapter
        fromzero finetune --data pairs.jsonl --r 16 --steps 500 --merge runs/my-model
        fromzero finetune --data talks.json --method qlora --layout packed
        fromzero finetune --data talks.json --method full --out runs/my-model
        fromzero finetune --resume runs/my-adapter
    """

    method: str = "lora"
    """lora; qlora (the frozen base in 4 bits: the least memory; a model of `fromzero quantize`
    stays as it is); full (every weight)"""
    data: MaybePath = None
    """json or jsonl; without it functions and their docstrings from Python's library"""
    prompt_key: MaybeText = None
    """pairs with keys of your own: which one holds the prompt"""
    answer_key: MaybeText = None
    """pairs with keys of your own: which one holds the answer"""
    layout: str = "right"
    """right or left (padding), or packed: several conversations in a row, unseen by each other"""
    held_out: float = 0.1
    """the share of the conversations kept for validation"""
    model: MaybePath = None
    """a model or run directory to start from; without it, the newest one in runs/"""
    out: MaybePath = None
    """the run directory, with the result in its folder adapter or model; else a new one in runs/"""
    overwrite: bool = False
    """replace the run that is already in --out"""
    resume: MaybePath = None
    """continue the run in this directory, with its own options"""
    allow_changes: bool = False
    """resume although options that decide the result have changed"""
    merge: MaybePath = None
    """also merge the adapter into the model and save that here"""
    max_length: MaybeInt = None
    """conversations with more tokens are left out; without it the model's context"""
    track: str = "auto"
    """where curves go too: auto (TensorBoard if it is installed), none, or names joined by commas:
    tensorboard, wandb, swanlab, mlflow"""
    lora: LoRAOptions = LoRAOptions()
    training: TrainingOptions = TrainingOptions(
        steps=300,
        learning_rate=3e-3,
        min_lr_ratio=0.1,
        weight_decay=0.0,
        eval_every=100,
        eval_batches=None,
    )


# Every number moves: the steps must be smaller than those of an adapter that starts at zero.
FULL = replace(Options.training, learning_rate=1e-4, weight_decay=0.01)


def parse(arguments: Sequence[str], *, program: str) -> Options | None:
    """Read the options; an earlier run's are the defaults when one is resumed."""
    options = parse_options(Options, arguments, program=program)
    if options is None or (options.resume is None and options.method != "full"):
        return options
    if options.resume is not None:
        defaults = load_options(Options, options.resume)
    else:
        defaults = Options(method="full", training=FULL)
    return parse_options(Options, arguments, program=program, defaults=defaults)


def run(options: Options) -> int:
    """Base model and conversations → adapter, or a whole model."""
    from finetuning.lora import LoRAConfig, count_trainable
    from foundation.devices import seed_everything
    from gpt_model.model_directory import (
        find_model_directory,
        load_config,
        stored_quantization,
    )
    from training.run_directory import RunDirectory
    from training.trackers import make_trackers

    # ① everything that can be wrong is found before anything takes long or is replaced
    check_method(options)
    training = options.training.to_config()
    make_trackers(options.track)  # unknown, or not installed
    lora = LoRAConfig(**vars(options.lora))
    pairs = read(options)
    base = find_model_directory(newest_run() if options.model is None else options.model)
    limit = load_config(base).max_seq_len
    length = limit if options.max_length is None else options.max_length
    check_int("max_length", length, 1, limit)
    resuming, overwrite = options.resume is not None, options.overwrite
    name = "finetuned" if options.method == "full" else "adapter"
    out = options.resume or options.out or free_directory(Path("runs"), name)
    if options.method == "full" and stored_quantization(base) is not None:
        raise ValueError(
            f"{base} holds integers, which cannot be trained; --method qlora trains an adapter "
            "beside them, --method full wants the model before it was quantized"
        )
    check_places(options, base, out)
    RunDirectory(out).check(resume=resuming, overwrite=overwrite)
    model, tokenizer, _ = open_model(base, options.training.device, "fp32")
    batches, exam = make_batches(options, pairs, tokenizer, length)
    # ② full: all of it; otherwise the base is frozen, two thin matrices beside each layer are not
    seed_everything(training.seed)
    make_trainable(model, options.method, lora, training.precision)
    trainable, total = count_trainable(model)
    options = replace(options, out=out, model=base, resume=None, overwrite=False)
    hooks = [] if resuming else [FreshResult(out)]
    trainer = build_trainer(model, tokenizer, training, options, batches, exam, hooks)
    before = trainer.evaluate().loss
    print(f"base       {base}")
    print(f"trainable  {trainable:,} of {total:,} parameters ({trainable / total:.1%})")
    print(f"held out   loss {before:.4f} before", flush=True)
    result = trainer.fit(resume=resuming, overwrite=overwrite, allow_changes=options.allow_changes)
    # ③ keep the best step
    after = before if result.best_loss is None else result.best_loss
    print(f"held out   loss {before:.4f} -> {after:.4f} (answers only)")
    plain, where = keep_best(options, base, out, tokenizer)
    if result.interrupted:
        print(f"to go on: fromzero finetune --resume {out}", flush=True)
        return INTERRUPTED
    show_answers(plain, tokenizer, pairs[1], exam)
    print(f"go on: fromzero generate {where} --prompt ...")
    return 0


def check_method(options: Options) -> None:
    """Refuse options that the method would not look at."""
    from foundation.checks import check_choice

    check_choice("method", options.method, METHODS)
    if options.method != "full":
        return
    for field in fields(LoRAOptions):
        given = getattr(options.lora, field.name)
        if given != field.default:
            raise ValueError(
                f"--method full trains every weight and has no {field.name}, got {given}; "
                "leave it out, or give --method lora"
            )
    if options.merge is not None:
        raise ValueError(
            "--merge joins an adapter with its base; --method full has no adapter and writes "
            "a plain model to the folder model of --out"
        )


def make_trainable(model: GPT, method: str, lora: LoRAConfig, precision: str) -> None:
    """Change the model in place, so that `requires_grad` says what is trained."""
    from finetuning.fused_lora import halve_frozen
    from finetuning.lora import apply_lora
    from foundation.devices import resolve_precision
    from inference.quantization import quantize
    from transformer_basics.quantized_linear import quantized_parts

    if method == "full":
        return
    if method == "qlora" and not quantized_parts(model):
        quantize(model)
    apply_lora(model, lora)
    if resolve_precision(precision, model.device) == "bf16":
        halve_frozen(model)  # what is multiplied in 16 bits and never updated


def read(options: Options) -> tuple[Sequence[Spoken], Sequence[Spoken]]:
    """What to learn and what is held out: spread evenly over the file, or whole modules."""
    from finetuning.conversation_files import read_conversations, read_pairs
    from finetuning.docstring_pairs import docstring_pairs
    from foundation.checks import check_float

    check_float("held_out", options.held_out, exclusive_minimum=0.0, exclusive_maximum=1.0)
    if options.data is None:
        return docstring_pairs(held_out_fraction=options.held_out)
    if options.data.is_dir():
        raise ValueError(
            f"{options.data} is a folder; finetuning wants one json or jsonl file of conversations "
            "(tokens of `fromzero data prepare` do not say who speaks)"
        )
    pairs: Sequence[Spoken]
    if options.prompt_key is None and options.answer_key is None:
        pairs = read_conversations(options.data)
    else:
        keys = options.prompt_key or "prompt", options.answer_key or "answer"
        pairs = read_pairs(options.data, prompt_key=keys[0], answer_key=keys[1])
    if len(pairs) < 2:
        raise ValueError(
            f"{options.data} has 1 conversation, at least 2 are needed: one is held out"
        )
    count = min(len(pairs) - 1, max(1, round(options.held_out * len(pairs))))
    held_out = [pairs[(2 * n + 1) * len(pairs) // (2 * count)] for n in range(count)]
    seen = set(held_out)  # what stands in the file twice must not be on both sides
    training = [pair for pair in pairs if pair not in seen]
    if not training:
        raise ValueError(
            f"{options.data}: all {len(pairs)} conversations are the same, none is left to learn"
        )
    return training, held_out


def make_batches(
    options: Options,
    pairs: tuple[Sequence[Spoken], Sequence[Spoken]],
    tokenizer: Tokenizer,
    length: int,
) -> tuple[ConversationBatches, ConversationBatches]:
    """What to learn and what is held out, as batches; one sample is shown."""
    from finetuning.packing import ConversationBatches

    batches, exam = (
        ConversationBatches(
            part,
            tokenizer,
            options.training.batch_size,
            length,
            seed=options.training.seed,
            too_long="skip",
            layout=options.layout,
        )
        for part in pairs
    )
    print(f"data       {len(batches):,} to learn from, {len(exam):,} held out")
    show_sample(batches.encoded[0], tokenizer)
    skipped = batches.n_skipped + exam.n_skipped
    if skipped:
        warnings.warn(
            f"{skipped} conversations are longer than {length} tokens and are left out",
            stacklevel=2,
        )
    return batches, exam


def build_trainer(
    model: GPT,
    tokenizer: Tokenizer,
    training: TrainConfig,
    options: Options,
    batches: ConversationBatches,
    exam: ConversationBatches,
    hooks: Sequence[Hook],
) -> Trainer:
    """The one training loop, with conversations for batches."""
    from finetuning.adapter_files import AdapterHook
    from fromzero.train import OptionsHook
    from training.hooks import TrackingHook, standard_hooks
    from training.trackers import make_trackers
    from training.trainer import Trainer

    full = options.method == "full"
    own: list[Hook] = [*hooks, OptionsHook(options)]
    if not full:
        own.append(AdapterHook(str(options.model)))
    if trackers := make_trackers(options.track):
        own.append(TrackingHook(trackers, config=options_as_json(options)))
    return Trainer(
        model,
        batches,
        config=training,
        hooks=[*standard_hooks(), *own],
        val_batches=exam.once,
        run_dir=options.out,
        tokenizer=tokenizer if full else None,  # makes each checkpoint a whole model directory
    )


def show_sample(encoded: Encoded, tokenizer: Tokenizer) -> None:
    """One conversation with what is learned in green and in brackets: a look before training."""
    from rich.console import Console
    from rich.text import Text

    from finetuning.sft import marked

    print("one of them, what counts in the loss in ⟦ ⟧:")
    text = marked(encoded, tokenizer)
    spans = text.spans
    text = Text(harmless(text.plain), spans=spans)
    Console(highlight=False, soft_wrap=True).print(text)
