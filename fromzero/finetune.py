"""`fromzero finetune`：用对话教一个模型新任务；全量、LoRA 或 QLoRA。"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from foundation.checks import check_int
from fromzero.arguments import parse_options
from fromzero.option_types import (
    MaybeInt,
    MaybePath,
    MaybeText,
    free_directory,
    harmless,
    open_model,
)
from fromzero.training_options import TrainingOptions, load_options

if TYPE_CHECKING:
    from finetuning.lora_config import LoRAConfig
    from finetuning.sft import Encoded, Spoken
    from gpt_model.model import GPT
    from tokenization.tokenizer import Tokenizer
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
    """lora; qlora (the frozen base in 4 bits: the least memory); full (every weight)"""
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
    from training.run_directory import RunDirectory

    # ① everything that can be wrong is found before anything takes long
    check_method(options)
    training = options.training.to_config()
    lora = LoRAConfig(**vars(options.lora))
    pairs = read(options)
    resuming = options.resume is not None
    name = "finetuned" if options.method == "full" else "adapter"
    out = options.resume or options.out or free_directory(Path("runs"), name)
    with RunDirectory(out).claimed(resume=resuming, overwrite=options.overwrite):
        pass
    model, tokenizer, base = open_model(options.model, options.training.device, "fp32")
    limit = model.config.max_seq_len
    length = check_int("max_length", options.max_length or limit, 1, limit)
    # ② full: all of it; otherwise the base is frozen, two thin matrices beside each layer are not
    seed_everything(training.seed)
    make_trainable(model, options.method, lora, training.precision)
    trainable, total = count_trainable(model)
    written = replace(options, out=out, model=base, resume=None, overwrite=False)
    trainer = build_trainer(out, base, model, tokenizer, training, written, pairs, length)
    before = trainer.evaluate().loss
    print(f"base       {base}")
    print(f"trainable  {trainable:,} of {total:,} parameters ({trainable / total:.1%})")
    print(f"held out   loss {before:.4f} before", flush=True)
    result = trainer.fit(
        resume=resuming, overwrite=options.overwrite, allow_changes=options.allow_changes
    )
    # ③ keep the best step
    print(f"held out   loss {before:.4f} -> {result.best_loss or before:.4f} (answers only)")
    plain, where = keep_best(options, base, out, tokenizer)
    if result.interrupted:
        print(f"to go on: fromzero finetune --resume {out}", flush=True)
        return INTERRUPTED
    show_answers(plain, tokenizer, pairs[1], length)
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

    if method == "full":
        return
    if method == "qlora":
        quantize(model)
    apply_lora(model, lora)
    if resolve_precision(precision, model.device) == "bf16":
        halve_frozen(model)  # what is multiplied in 16 bits and never updated


def keep_best(options: Options, base: Path, out: Path, tokenizer: Tokenizer) -> tuple[GPT, str]:
    """Save the best step as a model or an adapter; return a plain model and how to name it.

    The base is read again in 32 bits: training may have rounded the frozen copy.
    """
    from finetuning.adapter_files import load_adapter, save_adapter
    from finetuning.lora import merge_lora
    from gpt_model.model import GPT
    from inference.quantization import quantize
    from training.checkpoint_list import best_checkpoint, latest_checkpoint

    best = best_checkpoint(out) or latest_checkpoint(out)
    if best is None:  # stopped before the first step
        return open_model(base, options.training.device, "fp32")[0], f"--model {base}"
    if options.method == "full":
        model = GPT.load(best.directory, "cpu")
        model.save(out / "model", tokenizer)
        print(f"model      {out / 'model'}")
        return model, f"--model {out / 'model'}"
    model, _, _ = open_model(base, options.training.device, "fp32")
    if options.method == "qlora":
        quantize(model)
    load_adapter(model, best.directory)
    save_adapter(model, out / "adapter", base_name=str(base))
    size = sum(path.stat().st_size for path in (out / "adapter").iterdir())
    print(f"adapter    {out / 'adapter'}, {size / 1000:.0f} kB")
    plain = merge_lora(model, copy=False)
    assert isinstance(plain, GPT)
    if options.merge is None:
        return plain, f"--model {base} --adapter {out}"
    plain.save(options.merge, tokenizer)
    print(f"merged     {options.merge}")
    return plain, f"--model {options.merge}"


def read(options: Options) -> tuple[Sequence[Spoken], Sequence[Spoken]]:
    """What to learn and what is held out: every n-th of the file, or whole modules."""
    from finetuning.conversation_files import read_conversations, read_pairs
    from finetuning.docstring_pairs import docstring_pairs
    from foundation.checks import check_float

    check_float("held_out", options.held_out, exclusive_minimum=0.0, exclusive_maximum=1.0)
    if options.data is None:
        return docstring_pairs(held_out_fraction=options.held_out)
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
    every = max(2, round(1 / options.held_out))
    held_out = pairs[every - 1 :: every] or pairs[-1:]
    seen = set(held_out)  # what stands in the file twice must not be on both sides
    training = [pair for pair in pairs if pair not in seen]
    if not training:
        raise ValueError(
            f"{options.data}: all {len(pairs)} conversations are the same, none is left to learn"
        )
    return training, held_out


def build_trainer(
    out: Path,
    base: Path,
    model: GPT,
    tokenizer: Tokenizer,
    training: TrainConfig,
    options: Options,
    pairs: tuple[Sequence[Spoken], Sequence[Spoken]],
    length: int,
) -> Trainer:
    """The one training loop, with conversations for batches."""
    from finetuning.adapter_files import AdapterHook
    from finetuning.packing import ConversationBatches
    from fromzero.train import OptionsHook
    from training.hooks import standard_hooks
    from training.trainer import Trainer

    batches, exam = (
        ConversationBatches(
            part,
            tokenizer,
            options.training.batch_size,
            length,
            seed=training.seed,
            too_long="skip",
            layout=options.layout,
        )
        for part in pairs
    )
    skipped = batches.n_skipped + exam.n_skipped
    print(f"data       {len(batches):,} to learn from, {len(exam):,} held out")
    show_sample(batches.encoded[0], tokenizer)
    if skipped:
        warnings.warn(
            f"{skipped} conversations are longer than {length} tokens and are left out",
            stacklevel=2,
        )
    full = options.method == "full"
    hooks = [] if full else [AdapterHook(str(base))]
    return Trainer(
        model,
        batches,
        config=training,
        hooks=[*standard_hooks(), *hooks, OptionsHook(options)],
        val_batches=exam.once,
        run_dir=out,
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


def show_answers(model: GPT, tokenizer: Tokenizer, held_out: Sequence[Spoken], length: int) -> None:
    """Let the model answer three questions that it has not seen."""
    from finetuning.sft import encode, question_of
    from inference.generator import TextGenerator
    from inference.sampling import SamplingParams

    generator = TextGenerator(model, tokenizer)
    params = SamplingParams(max_new_tokens=60, temperature=0.0)
    questions = [(one, question_of(encode(one, tokenizer))) for one in held_out]
    fitting = [(one, ids) for one, ids in questions if len(ids) < length]
    for one, ids in fitting[:: max(1, len(fitting) // 3)][:3]:
        (answer,) = generator.generate([ids], params)
        print(f"\n--- prompt\n{harmless(tokenizer.decode(ids).rstrip())}")
        print(f"--- the model's answer\n{harmless(answer.text.strip())}")
        print(f"--- wanted\n{harmless(one.messages[-1].content)}")
    print()
