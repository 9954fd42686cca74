"""微调的结果放在哪里、放不放得下：练之前先查，练完了存最好的一步。"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fromzero.option_types import harmless, open_model
from fromzero.training_options import load_options
from training.hook_base import Hook

if TYPE_CHECKING:
    from finetuning.packing import ConversationBatches
    from finetuning.sft import Spoken
    from fromzero.finetune import Options
    from gpt_model.model import GPT
    from tokenization.tokenizer import Tokenizer
    from training.trainer import Trainer

__all__ = ["FreshResult", "check_places", "keep_best", "show_answers"]

ADAPTER, MODEL = "adapter", "model"


def check_places(options: Options, base: Path, out: Path) -> None:
    """Refuse, before anything is trained, every place where the result would destroy something."""
    from training.checkpoint_list import list_checkpoints

    resuming = options.resume is not None
    result = out / (MODEL if options.method == "full" else ADAPTER)
    if not resuming and base.resolve().is_relative_to(out.resolve()):
        raise ValueError(
            f"the base {base} lies in --out {out}, which a new run may clear; "
            "give another directory"
        )
    check_folder(out / ADAPTER, ADAPTER)
    check_folder(out / MODEL, MODEL)
    # an earlier run's checkpoints are refused by the run directory, which can say more
    if result.exists() and not (resuming or options.overwrite or list_checkpoints(out)):
        raise ValueError(
            f"{result} already exists; give another --out, or --overwrite to replace it"
        )
    if options.merge is not None:
        check_merge(options, options.merge, {base, out}, result)


def check_merge(options: Options, merge: Path, used: set[Path], result: Path) -> None:
    """The merged model replaces its directory: only a model of ours, and only if that is meant."""
    from foundation.files import MANIFEST

    place = merge.resolve()
    for path in used:
        if path.resolve().is_relative_to(place):
            raise ValueError(f"--merge {merge} would replace {path}; give another directory")
    if place.is_relative_to(result.resolve()):
        raise ValueError(f"--merge {merge} is where the adapter goes; give another directory")
    check_folder(merge, MODEL)
    if not merge.is_dir() or not any(merge.iterdir()):
        return
    if not (merge / MANIFEST).is_file():
        raise ValueError(f"{merge} holds a model that is not from here; give another --merge")
    # this run's own, from before it was interrupted
    own = options.resume is not None and load_options(type(options), options.resume).merge == merge
    if not (own or options.overwrite):
        raise ValueError(
            f"{merge} already holds a model; give another --merge, or --overwrite to replace it"
        )


def check_folder(directory: Path, kind: str) -> None:
    """A directory that saving replaces whole may hold nothing but an earlier result."""
    from finetuning.adapter_files import OWN_FILES
    from foundation.files import MANIFEST, refuse_foreign_directory
    from gpt_model.huggingface_files import CARRIED, TEMPLATES
    from gpt_model.model_directory import CONFIG_FILE, WEIGHTS_FILE
    from tokenization.tokenizer import FILE_NAME

    own: set[str] = OWN_FILES
    if kind == MODEL:
        own = {CONFIG_FILE, WEIGHTS_FILE, FILE_NAME, MANIFEST, TEMPLATES, *CARRIED}
    refuse_foreign_directory(directory, own, "an adapter" if kind == ADAPTER else "a model")


class FreshResult(Hook):
    """Take an earlier run's result away once a new run has the directory: it is not this run's."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def on_start(self, trainer: Trainer) -> None:
        """Called when the directory is claimed and the old checkpoints are gone."""
        from training.checkpoint_list import remove_checkpoint

        for directory in (self.out / ADAPTER, self.out / MODEL):
            if directory.is_dir():
                remove_checkpoint(directory)


def keep_best(options: Options, base: Path, out: Path, tokenizer: Tokenizer) -> tuple[GPT, str]:
    """Save the best step as a model or an adapter; return a plain model and how to name it.

    The base is read again in 32 bits: training may have rounded the frozen copy.
    """
    from finetuning.adapter_files import load_adapter, save_adapter
    from finetuning.lora import merge_lora
    from gpt_model.model import GPT
    from inference.quantization import quantize
    from training.checkpoint_list import best_checkpoint, latest_checkpoint
    from transformer_basics.quantized_linear import quantized_parts

    best = best_checkpoint(out) or latest_checkpoint(out)
    if best is None:  # stopped before the first step
        return open_model(base, options.training.device, "fp32")[0], f"--model {base}"
    if options.method == "full":
        model = GPT.load(best.directory, "cpu")
        model.save(out / MODEL, tokenizer)
        print(f"model      {out / MODEL}")
        return model, f"--model {out / MODEL}"
    model, _, _ = open_model(base, options.training.device, "fp32")
    if options.method == "qlora" and not quantized_parts(model):
        quantize(model)
    load_adapter(model, best.directory)
    save_adapter(model, out / ADAPTER, base_name=str(base))
    size = sum(path.stat().st_size for path in (out / ADAPTER).iterdir())
    print(f"adapter    {out / ADAPTER}, {size / 1000:.0f} kB")
    plain = merge_lora(model, copy=False)
    assert isinstance(plain, GPT)
    if options.merge is None:
        return plain, f"--model {base} --adapter {out}"
    plain.save(options.merge, tokenizer)
    print(f"merged     {options.merge}")
    return plain, f"--model {options.merge}"


def show_answers(
    model: GPT, tokenizer: Tokenizer, held_out: Sequence[Spoken], exam: ConversationBatches
) -> None:
    """Let the model answer three questions that it has not seen."""
    from finetuning.sft import question_of
    from inference.generator import TextGenerator
    from inference.sampling import SamplingParams

    generator = TextGenerator(model, tokenizer)
    params = SamplingParams(max_new_tokens=60, temperature=0.0)
    count = len(exam)
    for place in range(0, count, max(1, count // 3))[:3]:
        ids = question_of(exam.encoded[place])
        (answer,) = generator.generate([ids], params)
        print(f"\n--- prompt\n{harmless(tokenizer.decode(ids).rstrip())}")
        print(f"--- the model's answer\n{harmless(answer.text.strip())}")
        print(f"--- wanted\n{harmless(held_out[exam.kept[place]].messages[-1].content)}")
    print()
