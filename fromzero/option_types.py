"""各命令共用的选项：采样、设备、用哪个模型。"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from gpt_model.model import GPT
    from inference.generator import TextGenerator
    from inference.sampling import SamplingParams
    from tokenization.tokenizer import Tokenizer

__all__ = [
    "MaybeBool",
    "MaybeFloat",
    "MaybeInt",
    "MaybePath",
    "MaybeText",
    "Sampling",
    "free_directory",
    "given_tokenizer",
    "harmless",
    "lengthen",
    "holds_adapter",
    "newest_run",
    "open_generator",
    "open_model",
    "open_weights",
    "parse_bytes",
    "parse_tokens",
]

# "Not given" is None; the help need not show it as {None}|INT.
MaybeInt = Annotated[int | None, tyro.conf.arg(metavar="INT")]
MaybeFloat = Annotated[float | None, tyro.conf.arg(metavar="FLOAT")]
MaybeText = Annotated[str | None, tyro.conf.arg(metavar="TEXT")]
MaybePath = Annotated[Path | None, tyro.conf.arg(metavar="PATH")]
MaybeBool = Annotated[bool | None, tyro.conf.arg(metavar="True|False")]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen; the fields are those of SamplingParams."""

    max_new_tokens: int = 200
    """stop after this many tokens"""
    temperature: float = 0.8
    """0 = always the likeliest token; 0.7 is careful, 1.5 is wild"""
    top_k: int = 0
    """choose among the k likeliest tokens only; 0 = off, 40 is a good value"""
    top_p: float = 1.0
    """choose among the likeliest tokens that together have this probability; 1 = off"""
    min_p: float = 0.0
    """drop tokens less likely than this share of the likeliest; 0 = off"""
    repetition_penalty: float = 1.0
    """above 1: tokens that occurred already become less likely; 1.2 is a good value"""
    presence_penalty: float = 0.0
    """subtracted from the score of every token generated already"""
    frequency_penalty: float = 0.0
    """subtracted from a token's score for each time it was generated"""
    logit_bias: tuple[str, ...] = ()
    """ID=BIAS pairs, added to the scores of these token ids"""
    num_beams: int = 1
    """beam search with this many beams; 1 = off"""
    length_penalty: float = 1.0
    """beam search: above 1 favours longer texts"""
    num_return: Annotated[int, tyro.conf.arg(aliases=["--n"])] = 1
    """how many continuations of each prompt"""
    stop: tuple[str, ...] = ()
    r"""end before any of these texts; \n in them stands for a line break"""
    seed: MaybeInt = None
    """the same seed gives the same text; without it every run differs"""
    logprobs: bool = False
    """list every token with its log-probability"""
    top_logprobs: int = 0
    """with --logprobs: list this many likeliest candidates of every step too"""

    def to_params(self) -> SamplingParams:
        """Build the library's parameters, which check every value."""
        import dataclasses
        import secrets

        from inference.sampling import SamplingParams

        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values["seed"] = secrets.randbits(32) if self.seed is None else self.seed
        values["stop"] = tuple(text.replace("\\n", "\n") for text in self.stop)
        values["logit_bias"] = parse_bias(self.logit_bias)
        return SamplingParams(**values)


def parse_bias(pairs: Sequence[str]) -> dict[int, float] | None:
    """Read ["13=-100", "7=2.5"] as {13: -100.0, 7: 2.5}."""
    bias = {}
    for pair in pairs:
        token, _, value = pair.partition("=")
        try:
            bias[int(token)] = float(value)
        except ValueError:
            raise ValueError(f"logit_bias must be ID=BIAS such as 13=-2.5, got {pair!r}") from None
    return bias or None


COUNT_UNITS = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9, "G": 10**9, "T": 10**12}
BYTE_UNITS = {f"{unit}B": size for unit, size in COUNT_UNITS.items() if unit != "B"}
BYTE_UNITS |= {f"{unit}iB": 2 ** (10 * k) for k, unit in enumerate("KMGT", 1)}


def parse_tokens(name: str, text: str, n_parameters: int) -> int:
    """Read 10e9, 300M, 10B or 20x (as many per parameter) as a number of tokens."""
    units = {**COUNT_UNITS, "x": n_parameters}
    return parse_with_unit(name, text, units, "10e9, 300M, 10B or 20x")


def parse_bytes(name: str, text: str) -> int:
    """Read 80GB, 24GiB or 500000 as bytes; GB is 1000³, GiB is 1024³."""
    return parse_with_unit(name, text, {"": 1, **BYTE_UNITS}, "80GB, 24GiB or 16000MB")


def parse_with_unit(name: str, text: str, units: dict[str, int], examples: str) -> int:
    """A positive number and one of the units, whatever their case and the space between."""
    by_fold = {unit.casefold(): size for unit, size in units.items()}
    match = re.fullmatch(r"\s*([\d.]*\d\.?(?:e\+?\d+)?)\s*([a-z]*)\s*", text.casefold())
    try:
        number = float(match[1]) * by_fold[match[2]] if match else 0.0
    except (ValueError, KeyError):
        number = 0.0
    if not 1 <= number < 2**63:
        known = ", ".join(unit for unit in units if unit)
        raise ValueError(
            f"{name} must be a positive number such as {examples} (units: {known}), got {text!r}"
        )
    return round(number)


def harmless(text: str) -> str:
    """Text for a terminal: control characters, which could move its cursor or worse, become ·."""
    return "".join(c if c.isprintable() or c in "\n\t" else "·" for c in text)


def newest_run(folder: Path = Path("runs")) -> Path:
    """The run directory that was saved to last."""
    from foundation.files import MANIFEST

    saved = [manifest.parent for manifest in folder.glob(f"*/step-*/{MANIFEST}")]
    saved += [manifest.parent for manifest in folder.glob(f"*/{MANIFEST}")]
    models = [step for step in saved if (step / "config.json").is_file()]
    if not models:
        raise ValueError(
            f"there is no model in {folder.resolve()}; train one (fromzero train), "
            "or name its directory with --model"
        )
    newest = max(models, key=lambda step: (step / MANIFEST).stat().st_mtime_ns)
    return newest.parent if newest.name.startswith("step-") else newest


def holds_adapter(path: Path) -> bool:
    """An adapter directory, or a run of `fromzero finetune` that trains one, finished or not?"""
    places = (path, path / "adapter", *path.glob("step-*"))
    return any((place / "adapter_config.json").is_file() for place in places)


def free_directory(parent: Path, name: str) -> Path:
    """The first of NAME, NAME-2, NAME-3 … that is not there yet."""
    candidates = (parent / (name if n == 1 else f"{name}-{n}") for n in itertools.count(1))
    return next(path for path in candidates if not path.exists())


def given_tokenizer(name: str) -> Tokenizer | None:
    """The tokenizer at a path or of a run; None for a kind that is learned from the data."""
    from foundation.checks import check_choice
    from gpt_model.model_directory import find_model_directory
    from tokenization.tokenizer import FILE_NAME, Tokenizer
    from training.prepare import TOKENIZER_KINDS

    if name in TOKENIZER_KINDS:
        return None
    if not Path(name).exists():
        check_choice("tokenizer", name, [*TOKENIZER_KINDS, "the path of a tokenizer"])
    if any(Path(name).glob("step-*")) and not (Path(name) / FILE_NAME).exists():
        return Tokenizer.load(find_model_directory(name))  # a run keeps it in its checkpoints
    return Tokenizer.load(name)


def open_model(
    path: Path | None, device: str = "auto", dtype: str = "auto", adapter: Path | None = None
) -> tuple[GPT, Tokenizer, Path]:
    """Load a model and its tokenizer; without a path, those of the newest run."""
    from tokenization.tokenizer import Tokenizer

    model, directory = open_weights(path, device, dtype, adapter)
    tokenizer = Tokenizer.load(directory)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"{directory}: the tokenizer has {tokenizer.vocab_size} tokens, but the model's "
            f"vocab_size is {model.config.vocab_size}; they do not belong together"
        )
    return model, tokenizer, directory


def open_weights(
    path: Path | None, device: str = "auto", dtype: str = "auto", adapter: Path | None = None
) -> tuple[GPT, Path]:
    """Load a model alone, and say from which directory.

    An adapter is merged into the weights: what comes back is a plain model.
    """
    import torch

    from foundation.checks import check_choice
    from foundation.devices import pick_device
    from gpt_model.model import GPT
    from gpt_model.model_directory import find_model_directory

    check_choice("dtype", dtype, ("auto", "fp32", "bf16"))
    target = pick_device(device)
    if path is not None and holds_adapter(path):
        raise ValueError(
            f"{path} is a LoRA adapter, not a model; give it with --adapter, "
            "beside the model it was trained on"
        )
    directory = find_model_directory(newest_run() if path is None else path)
    dtypes: dict[str, torch.dtype | None] = {"auto": None, "fp32": torch.float32}
    model = GPT.load(directory, target, dtypes.get(dtype, torch.bfloat16))
    if adapter is not None:
        from finetuning.adapter_files import load_adapter, recorded_quantization
        from finetuning.lora import merge_lora
        from inference.quantization import quantize
        from transformer_basics.quantized_linear import quantized_parts

        inner = adapter / "adapter"  # where a run of `fromzero finetune` keeps it
        inner = inner if inner.is_dir() else adapter
        group_size = recorded_quantization(inner)
        # QLoRA: the change was learned beside the rounded weights
        if group_size is not None and not quantized_parts(model):
            quantize(model, group_size=group_size)
        load_adapter(model, inner)
        merged = merge_lora(model)
        assert isinstance(merged, GPT)
        model = merged
    return model, directory


def lengthen(model: GPT, context: int | None, rope_scaling: str | None) -> GPT:
    """Let a model read further than it was trained to, if both options are given."""
    from gpt_model.longer_context import LONGER, extend_context

    if context is None and rope_scaling is None:
        return model
    if context is None:
        raise ValueError(f"--rope-scaling {rope_scaling} needs --context, the length to read")
    if rope_scaling is None:
        raise ValueError(
            f"--context {context} needs --rope-scaling, one of {', '.join(LONGER)}; "
            f"the model's own context is {model.config.max_seq_len}"
        )
    return extend_context(model, context, rope_scaling)


def open_generator(
    path: Path | None,
    device: str = "auto",
    dtype: str = "auto",
    adapter: Path | None = None,
    *,
    fast: bool = False,
    context: int | None = None,
    rope_scaling: str | None = None,
) -> tuple[TextGenerator, Path]:
    """Load a model ready to write; fast prepares it for decoding where that helps (a CPU)."""
    from inference.generator import TextGenerator

    model, tokenizer, directory = open_model(path, device, dtype, adapter)
    lengthen(model, context, rope_scaling)  # before it is prepared: positions go in too
    if fast and model.device.type == "cpu":
        from inference.prepared import prepare_for_inference

        return TextGenerator(prepare_for_inference(model), tokenizer), directory
    return TextGenerator(model, tokenizer), directory
