"""训练类命令共用的选项：GPTConfig 与 TrainConfig 的每个字段，以及随训练存下的选项。

The fields are written out a second time, without torch, so that `--help` is instant; a test holds
the two lists equal.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from foundation.checks import unknown_key_message
from foundation.files import read_json
from fromzero.option_types import MaybeBool, MaybeFloat, MaybeInt, MaybeText

if TYPE_CHECKING:
    from gpt_model.config import GPTConfig
    from training.train_config import TrainConfig

__all__ = ["OPTIONS_FILE", "ModelOptions", "TrainingOptions", "load_options", "options_as_json"]

OPTIONS_FILE = "options.json"
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Fields of GPTConfig to change; what is not given keeps the preset's value."""

    vocab_size: MaybeInt = None
    """how many tokens the BPE tokenizer learns"""
    max_seq_len: MaybeInt = None
    """the longest text the model can see at once; at least the block size"""
    dim: MaybeInt = None
    """the width of the residual stream"""
    n_layers: MaybeInt = None
    """how many Transformer blocks"""
    n_heads: MaybeInt = None
    """attention heads; must divide dim"""
    n_kv_heads: MaybeInt = None
    """key/value heads shared by groups of heads; must divide n_heads"""
    head_dim: MaybeInt = None
    """the size of one head; without it dim / n_heads"""
    ffn_dim: MaybeInt = None
    """the width inside the feed-forward layer; without it 4 dim"""
    norm: MaybeText = None
    """layernorm or rmsnorm"""
    norm_eps: MaybeFloat = None
    """keeps the normalization from dividing by zero"""
    norm_position: MaybeText = None
    """pre (the input of each layer) or post (its output, as in 2017)"""
    qk_norm: MaybeBool = None
    """normalize queries and keys before they are compared"""
    position: MaybeText = None
    """learned, sinusoidal, rope or none"""
    rope_theta: MaybeFloat = None
    """the base of RoPE's wavelengths"""
    rope_scaling: MaybeText = None
    """a JSON object, for example {"kind": "yarn", "factor": 4}"""
    sliding_window: MaybeInt = None
    """each token sees this many tokens; without it all earlier ones"""
    token_shift: MaybeBool = None
    """mix the previous token's embedding into each token's"""
    bigram_rows: MaybeInt = None
    """rows of a hashed table of embeddings for (previous, this) pairs"""
    activation: MaybeText = None
    """gelu, gelu_tanh, relu, relu2 or silu"""
    gated_ffn: MaybeBool = None
    """multiply by a gate inside the feed-forward layer (with silu: SwiGLU)"""
    qkv_bias: MaybeBool = None
    """biases in the query, key and value projections"""
    proj_bias: MaybeBool = None
    """biases everywhere else"""
    tie_embeddings: MaybeBool = None
    """one matrix for the input and the output vocabulary"""
    logit_softcap: MaybeFloat = None
    """squash logits into this range"""
    dropout: MaybeFloat = None
    """the share of activations dropped in training"""
    init_std: MaybeFloat = None
    """the standard deviation of fresh weights"""
    zero_init: MaybeBool = None
    """projections that write into the residual stream start at zero"""

    def to_config(self, preset_name: str, file: Path | None) -> GPTConfig:
        """Change a preset by a JSON file, then by these options; every value is checked."""
        from gpt_model.config import GPTConfig, preset

        config = preset(preset_name)
        changes: dict[str, Any] = {} if file is None else read_json(file)
        if not isinstance(changes, dict):
            raise ValueError(f"{file} must hold a JSON object, got {type(changes).__name__}")
        where = "the options" if file is None else str(file)
        config = GPTConfig.from_dict({**config.to_dict(), **changes}, where=where)
        given = {name: value for name, value in vars(self).items() if value is not None}
        if "rope_scaling" in given:
            given["rope_scaling"] = json_object("rope_scaling", given["rope_scaling"])
        return config.replace(**given)


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How long and how to train; the fields are those of TrainConfig."""

    steps: MaybeInt = None
    """how many updates; overrides --minutes"""
    batch_size: int = 16
    """sequences per step; halve it when memory is short, and double --grad-accumulation"""
    grad_accumulation: int = 1
    """add the gradients of this many batches before each update"""
    learning_rate: float = 3e-3
    """the highest learning rate; small models take large ones"""
    min_lr_ratio: float = 0.02
    """the last learning rate, as a share of the highest"""
    schedule: str = "cosine"
    """cosine, wsd (warmup, stable, decay) or constant"""
    warmup_steps: MaybeInt = None
    """steps until the highest learning rate; without it a tenth, at most 100"""
    decay_steps: MaybeInt = None
    """wsd only: how many steps the decay takes; without it a fifth"""
    optimizer: str = "adamw"
    """adamw, or muon (orthogonalized updates for the matrices inside the blocks)"""
    weight_decay: float = 0.1
    """shrinks matrices a little at every step"""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's memory of the gradient and of its square"""
    eps: float = 1e-8
    """keeps AdamW from dividing by zero"""
    muon_learning_rate: MaybeFloat = None
    """muon only: the highest learning rate of those matrices; without it --learning-rate"""
    muon_momentum: float = 0.95
    """muon only: how long it remembers gradients"""
    grad_clip: MaybeFloat = 1.0
    """the longest gradient allowed; longer ones are scaled down"""
    precision: str = "auto"
    """auto, fp32, bf16 or fp16 (CUDA only)"""
    gradient_checkpointing: str = "none"
    """none, selective or block: less memory for more time, the same result"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps"""
    parallel: str = "none"
    """under torchrun: ddp (a whole model in each process) or fsdp (a part in each)"""
    seed: int = 0
    """decides the initial weights, the order of the data and dropout"""
    eval_every: int = 200
    """steps between two validations"""
    eval_batches: MaybeInt = 20
    """batches per validation; at the end the whole split is measured"""
    save_every: MaybeInt = None
    """steps between two checkpoints; without it at every validation"""
    keep_last: int = 2
    """how many checkpoints to keep, besides the best; at least 2"""
    sharded_checkpoints: bool = False
    """fsdp only: each process saves its own part, so that no one needs room for the whole"""
    patience: MaybeInt = None
    """stop after this many validations without progress"""
    max_skipped_steps: int = 5
    """stop after this many steps in a row with NaN or infinite gradients"""
    spike_action: str = "log"
    """when the loss or the gradient jumps: off, log (and go on) or skip (no update)"""
    spike_factor: float = 10.0
    """a jump is this many deviations above the median of the steps before"""
    spike_window: int = 64
    """how many steps before are looked at"""
    deterministic: bool = False
    """use deterministic operations only: bit-equal runs on a GPU too, somewhat slower"""
    overfit_one_batch: bool = False
    """learn one batch by heart: if the loss does not fall to near 0, something is broken"""

    def to_config(self) -> TrainConfig:
        """Build the library's configuration, which checks every value."""
        from training.train_config import TrainConfig

        values = dict(vars(self))
        if values["steps"] is None:  # not known yet; everything else is checked already
            del values["steps"]
        return TrainConfig(**values)


def json_object(name: str, text: str) -> dict[str, Any]:
    """Read an option that holds a JSON object."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} must be a JSON object, got {text!r}: {error.msg}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be a JSON object, got {text!r}")
    return value


def options_as_json(options: Any) -> dict[str, Any]:
    """Options as JSON values; `load_options` reads them back."""
    plain = dataclasses.asdict(options)
    return json.loads(json.dumps(plain, default=str))  # type: ignore[no-any-return]


def load_options(options_type: type[T], run_dir: Path) -> T:
    """Read the options that a run in `run_dir` was started with."""
    path = run_dir / OPTIONS_FILE
    if not run_dir.is_dir():
        raise ValueError(f"cannot resume: the run directory {run_dir} does not exist")
    if not path.is_file():
        raise ValueError(
            f"cannot resume: {run_dir} has no {OPTIONS_FILE}; no run was started there"
        )
    return build(options_type, renamed(read_json(path)), str(path))


def renamed(values: Any) -> Any:
    """The options of a run that an earlier version started, under the names of today."""
    if isinstance(values, dict) and "tensorboard" in values:
        values = dict(values)
        track = "tensorboard" if values.pop("tensorboard") else "none"
        values.setdefault("track", track)
    return values


def build(options_type: type[T], values: Any, where: str) -> T:
    """Make a dataclass of options from JSON values; unknown names are refused."""
    if not isinstance(values, dict):
        raise ValueError(f"{where} must hold a JSON object, got {type(values).__name__}")
    hints = typing.get_type_hints(options_type)
    for key in values:
        if key not in hints:
            raise ValueError(unknown_key_message(key, list(hints), where))
    arguments: dict[str, Any] = {}
    for name, value in values.items():
        kind = hints[name]
        if dataclasses.is_dataclass(kind):
            value = build(kind, value, where)  # type: ignore[arg-type]
        elif isinstance(value, list):
            value = tuple(value)
        elif isinstance(value, str) and Path in (kind, *typing.get_args(kind)):
            value = Path(value)
        arguments[name] = value
    return options_type(**arguments)
